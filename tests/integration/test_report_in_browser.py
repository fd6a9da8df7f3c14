"""The report in a real browser: figures, hover, legends, tabs, keyboard, a phone's width, paper; no errors, no network.

Of a run, of several, of a sweep, of a study, and of a run that goes on.

Needs Debian's chromium and the package playwright. Screenshots stay in $MLPT_SCREENSHOTS, if that is set.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reporting"))

from made_runs import add_samples, make_run, make_sweep
from made_study import results

from mlpt.reporting.report import report_page
from mlpt.reporting.serving import ReportServer

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
SCROLL = "one => one.scrollIntoView({block: 'center'})"  # playwright's own waits for frames, which may not come
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of one run with texts, of six in two groups, of a sweep and of a study."""
    folder = tmp_path_factory.mktemp("browser")
    names = []
    for rule, lift in (("uniform", 0.0), ("exp3", -0.5)):
        for seed in range(3):
            names.append(str(make_run(folder / f"{rule}-{seed}", {"rule": rule}, seed, lift=lift)))
    add_samples(Path(names[0]))
    (folder / "one.html").write_text(report_page(names[:1]))
    (folder / "several.html").write_text(report_page(names))
    (folder / "sweep.html").write_text(report_page([str(make_sweep(folder / "trials"))]))
    (folder / "comparison").mkdir()
    (folder / "comparison/study.json").write_text(json.dumps(results()))
    (folder / "study.html").write_text(report_page([str(folder / "comparison")]))
    return folder


@pytest.fixture
def opened(browser, pages, request):
    """Opens a page by name; at the end nothing may have been complained of or asked of the network."""
    context = browser.new_context()
    context.set_default_timeout(120_000)  # a busy machine
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda asked: complaints.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None,
    )

    def open_page(name: str, width: int = 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((pages / f"{name}.html").as_uri())
        page.wait_for_selector("main .plot", state="attached")
        return page

    yield open_page
    if (kept := os.environ.get("MLPT_SCREENSHOTS")) is not None:
        page.screenshot(path=str(Path(kept) / f"{request.node.name}.png"), full_page=True)
    context.close()
    assert complaints == []


def draw_all(page) -> int:
    """Scroll to every visible figure and wait until it is drawn; how many there are."""
    plots = [plot for plot in page.query_selector_all(".plot") if plot.is_visible()]
    for plot in plots:
        plot.evaluate(SCROLL)
        plot.wait_for_selector(".main-svg")
    return len(plots)


@pytest.mark.parametrize(("name", "figures"), [("one", 8), ("several", 8), ("sweep", 2), ("study", 2)])
def test_every_section_is_drawn_and_reached_by_its_link(opened, name, figures):
    page = opened(name)
    assert draw_all(page) >= figures
    links = page.query_selector_all("nav a")
    assert len(links) >= 2
    for link in links:
        link.click()
        section = page.query_selector(link.get_attribute("href"))
        there = "one => Math.abs(one.getBoundingClientRect().top) < innerHeight"
        page.wait_for_function(there, arg=section, polling=100)  # ms: where nothing is drawn, no frame comes either


def test_pointing_at_a_figure_tells_its_values(opened):
    page = opened("one")
    plot = page.query_selector(".plot")
    plot.evaluate(SCROLL)
    plot.wait_for_selector(".main-svg")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('.plot .hoverlayer').textContent.includes('training')")


def test_a_series_is_hidden_and_shown_again_with_the_keyboard(opened):
    page = opened("one")
    button = page.wait_for_selector(".legend button")
    hidden = "() => document.querySelector('.plot').data.filter(one => one.visible === false).length"
    assert page.evaluate(hidden) == 0
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"({hidden})() > 0")
    assert button.get_attribute("aria-pressed") == "false"
    page.keyboard.press("Space")
    page.wait_for_function(f"({hidden})() === 0")


def test_tabs_change_by_mouse_and_by_arrow_keys(opened):
    page = opened("several")
    draw_all(page)  # a figure that is drawn while the mouse goes down may move what was aimed at
    for bar in page.query_selector_all("[role=tablist]"):
        first, second = bar.query_selector_all("[role=tab]")
        panels = [page.query_selector(f"#{tab.get_attribute('aria-controls')}") for tab in (first, second)]
        assert [panel.is_visible() for panel in panels] == [True, False]
        second.click()
        assert [panel.is_visible() for panel in panels] == [False, True]
        panels[1].wait_for_selector(".main-svg")
        page.keyboard.press("ArrowLeft")
        assert [panel.is_visible() for panel in panels] == [True, False]


def test_texts_change_with_the_step_and_begin_with_the_last_one(opened):
    page = opened("one")
    bars = page.query_selector_all("[role=tablist]")
    assert [bar.get_attribute("aria-label").split(":")[0] for bar in bars] == [
        *("What the teacher writes", "Hard tokens", "What the guide chooses"),
    ]
    for bar in bars:
        first, last = bar.query_selector_all("[role=tab]")
        assert last.get_attribute("aria-selected") == "true"
        last.focus()
        page.keyboard.press("ArrowLeft")
        panel = page.query_selector(f"#{first.get_attribute('aria-controls')}")
        assert panel.is_visible()
        assert panel.query_selector("mark").is_visible()


def test_marks_are_told_apart_without_colours(opened):
    """By lines of their own thickness, by what is struck out, and on paper too."""
    page = opened("one")
    page.emulate_media(media="print")
    look = "one => { const s = getComputedStyle(one); return [s.borderBottomWidth, s.borderBottomStyle].join(' '); }"
    kinds = ("h1", "h2", "h3", "h4", "masked", "guided")
    seen = [page.eval_on_selector(f"mark.{kind}", look) for kind in kinds]
    assert len(set(seen[:4])) == 4  # hardness by thickness
    assert seen[4:] == ["1px dashed", "4px double"]
    struck = "one => getComputedStyle(one).textDecorationLine"
    assert page.eval_on_selector("blockquote mark.other del", struck) == "line-through"
    assert page.query_selector_all(".paper")[0].is_visible()  # the step of texts that are no longer under tabs


PAGES = ["one", "several", "sweep", "study"]


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_phone(opened, name):
    page = opened(name, width=360)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_of_a_run_that_goes_on_follows_it(browser, tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    server = ReportServer([str(run)])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        context = browser.new_context()
        context.set_default_timeout(120_000)  # a busy machine
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("main .plot .main-svg")
        assert "204,800" in page.inner_text(".tiles")
        with open(run / "metrics.jsonl", "a") as file:  # before the page has asked for the first time, or after it
            file.write(json.dumps({"step": 400, "tokens": 409_600, "loss": {"mlm": 3.0}}) + "\n")
        page.wait_for_function("document.querySelector('.tiles').innerText.includes('409,600')")
        page.wait_for_selector("main .plot .main-svg")
        context.close()
    finally:
        server.shutdown()
        server.server_close()


def test_on_paper_all_figures_are_there(opened, pages):
    page = opened("several")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    count = len(page.query_selector_all(".plot"))
    page.wait_for_function(f"document.querySelectorAll('.plot .main-svg:first-child').length >= {count}")
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", PAGES)
def test_text_stands_out_from_what_is_behind_it(opened, name):
    """WCAG 2.1, 1.4.3: a contrast of 4.5 and more."""
    page = opened(name)
    draw_all(page)
    colours = page.evaluate(
        """() => [...document.querySelectorAll(
            'p, figcaption, td, th, dt, dd, h1, h2, h3, button, a, footer, mark, mark *')]
        .filter(one => one.innerText && one.className !== 'skip').map(one => {
            let back = one;
            while (getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
            return [getComputedStyle(one).color, getComputedStyle(back).backgroundColor]; })"""
    )
    assert len(colours) > 15
    assert min(_contrast(text, back) for text, back in colours) >= 4.5


def _contrast(*colours: str) -> float:
    lights = []
    for colour in colours:
        parts = [int(one) / 255 for one in colour[4:-1].split(",")[:3]]
        linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
