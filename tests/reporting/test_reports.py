"""`mlpt report`: one page of a run, of several, of a sweep; also of what is torn, half-written or empty."""

import html
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_runs import add_samples, make_run, make_sweep
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.errors import UserError
from mlpt.reporting.html import sweep_page
from mlpt.reporting.html.page import render
from mlpt.reporting.importance import importance_of
from mlpt.reporting.records import read_run
from mlpt.reporting.report import report_page
from mlpt.reporting.sweeps import TrialRow, read_sweep
from mlpt.run.launch import pretrain
from mlpt.sparsity.artefacts import MaskFile, save_masks

RECIPE = {
    "model": {"hidden_size": 32, "layers": 2, "heads": 2},
    "objectives": {"mlm": {}, "cse": {}},
    "meta": {"interval": 3, "lag": 1, "rules": {"mixture": {"rule": "exp3"}}},
    "train": {"steps": 12, "batch_size": 8, "evaluate_batches": 1, "log_every": 1, "evaluate_every": 4},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}


@pytest.fixture(scope="module")
def run(small_blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "run"
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE | {"data": {"source": small_blocks}, "run_dir": str(folder), "seed": 3}))
    return pretrain(str(recipe)).folder


def own(page: str) -> str:
    """The page without the plotting library."""
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def titles(page: str) -> list[str]:
    return headings(own(page))


def headings(page: str) -> list[str]:
    return re.findall(r"<h[123][^>]*>([^<]*)</h[123]>", page)


def figures(page: str) -> list[dict]:
    found = re.findall(r'<script type="application/json" id="f\d+-d">(.*?)</script>', page, re.DOTALL)
    return [json.loads(one) for one in found]


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_run_ends_with_its_report(run):
    page = (run / "report.html").read_text()
    assert "Hard tokens" in titles(page)
    assert "MFU" in page
    assert re.search(r"training: [\d.,]+ .*MiB", page)  # what training itself holds, beside the meta-learner
    assert {
        *("Loss of mlm", "Loss of cse", "Held-out losses", "Mixture", "Rewards", "Learning rate", "Gradient norm"),
        "Time for batches",
        *("Speed", "Peak memory", "What happened when", "Starts of this run", "Repeat this run", "Environment"),
    } <= set(titles(page))
    assert "finished" in page
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['held_out']['mlm']:.4g} nats" in page


def test_a_report_holds_no_path_but_the_runs_own_and_asks_for_nothing_outside(run, small_blocks):
    page = own((run / "report.html").read_text())
    assert small_blocks not in page
    assert str(run) in page
    paths = set(re.findall(r"(?<![\w:<.…])/(?:[\w.-]+/)+[\w.-]+", page.replace(str(run), "")))
    assert not {path for path in paths if path.startswith(("/home", "/root", "/tmp", "/usr", "/work", "/private"))}
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)


def test_every_figure_is_told_in_words_and_every_page_is_well_formed(run):
    page = own((run / "report.html").read_text())
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == len(figures(page))
    assert all(len(caption) > 10 for caption in captions)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []


class _Balance(HTMLParser):
    """Which elements are open; raises where another one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_can_be_switched_off_and_its_failure_is_a_warning(run, monkeypatch, capsys, tmp_path):
    config = run / "config.yaml"
    off = {"run_dir": str(tmp_path / "off"), "report": {"html": False, "progress": "off"}, "train": {"steps": 2}}
    assert not (pretrain(str(config), off).folder / "report.html").exists()
    monkeypatch.setattr("mlpt.reporting.report.render", lambda *words: 1 / 0)
    broken = {**off, "run_dir": str(tmp_path / "broken"), "report": {"html": True, "progress": "off"}}
    folder = pretrain(str(config), broken).folder
    assert (folder / "model/config.json").is_file()
    assert "warning: no report was made (division by zero)" in capsys.readouterr().err


def test_objectives_named_like_markup_are_shown_as_they_are(tmp_path):
    folder = make_run(tmp_path / "odd <b>")
    text = (folder / "metrics.jsonl").read_text().replace('"mlm"', '"</script><b>"')
    (folder / "metrics.jsonl").write_text(text)
    page = report_page([str(folder)])
    assert "Loss of &lt;∕script&gt;&lt;b&gt;" in page
    assert "<b>" not in own(page)


def test_what_the_teacher_writes_and_which_tokens_are_hard(tmp_path):
    """Every mark is there for whoever sees no colours: struck out, inserted, small below, and told in words."""
    folder = make_run(tmp_path / "run")
    add_samples(folder)
    (folder / "samples/step_00000100.json").write_text("{torn")
    page = own(report_page([str(folder)]))
    expected = {"Teacher", "Texts", "What the teacher writes: teacher_made", "What the guide chooses: guided"}
    expected |= {
        "Hard tokens",
        "Entropy of what the teacher writes",
        "Mask token, copies, commonest token",
        "Teacher: agreement h",
    }
    assert expected <= set(headings(page))
    assert '<mark class="masked" title="play: 2.5 nats"><del>play</del></mark>' in page
    assert "<del>ing</del><ins>over</ins><sub>under</sub></mark> &lt;b&gt; " in page
    assert '<mark class="guided" title="games: 0.5 nats">games</mark>' in page
    assert "5 tokens: 1 masked (20 %), 1 replaced (20 %); mean loss of the 3 to be predicted 3.417 nats." in page
    assert '<mark class="h1" title="ing: 1.5 nats">ing</mark>' in page
    assert '<mark class="h4" title="games: 9.75 nats">games</mark>' in page
    assert "Hardest: “games” 9.75, “&lt;b&gt;” 4, “ing” 1.5, “play” 0.25." in page
    assert page.count('role="tab"') == 3 * 2  # the torn file is passed over
    assert page.count('aria-selected="true" tabindex="0">step 200<') == 3  # the last is shown first


def test_how_many_weights_change_sides_between_masks(tmp_path):
    folder = make_run(tmp_path / "run")
    kept = torch.ones(4, 8, dtype=torch.bool)
    for step in (0, 100, 200):
        kept = kept.clone()
        kept[step // 100, : 1 + step // 100] = False  # 1 of 32 in the first mask, then 2 more, then 3 more
        save_masks(MaskFile.of({"layer.0.weight": kept}, "tamt", step=step), folder / f"masks/step_{step}")
    assert read_run(str(folder)).masks.changed == {}
    record = read_run(str(folder), in_full=True)
    assert record.masks.kept[200] == {"layer.0.weight": 26 / 32}
    assert record.masks.changed == {100: (2 / 32, 2 / 32), 200: (3 / 32, 5 / 32)}
    (folder / "masks/step_100/masks.safetensors").write_bytes(b"torn")
    assert read_run(str(folder), in_full=True).masks.changed == {200: (5 / 32, 5 / 32)}
    page = own(report_page([str(folder)]))
    assert {"Density of each masked matrix", "Changes of the mask"} <= set(headings(page))


def test_the_timeline_says_who_was_started_again_and_when_policies_were_adopted(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "logs").mkdir()
    rank = "2026-01-01 10:0{}:00,000 INFO mlpt.runtime.rank: rank 1 of 2 on cpu, process 7\n"
    (folder / "logs/rank_1.log").write_text(rank.format(0) + "Traceback (most recent call last):\n" + rank.format(4))
    adopted = json.dumps({"event": "policy", "step": 40, "policy": 3})
    (folder / "logs/rank_0.log").write_text(f"2026-01-01 10:03:00,000 INFO mlpt.runtime.rank: {adopted}\n")
    ready = "INFO mlpt.runtime.meta_actor: meta-learner ready: rules exp3, process 9"
    (folder / "logs/meta_learner.log").write_text(f"2026-01-01 10:01:00,000 {ready}\n2026-01-01 10:02:00,500 {ready}\n")
    page = own(report_page([str(folder)]))
    assert "by rank 1, meta learner, rank 0." in page
    assert "Started again: rank 1 1 times, meta learner 1 times." in page
    assert "policy 3 adopted at step 40" in page


def test_a_run_under_way_a_torn_line_and_damage_are_shown_as_far_as_they_go(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('garbage\n{"step": 99999, "loss": {"ml')
    page = report_page([str(folder)])
    assert "1 lines of metrics.jsonl could not be read" in page
    assert "99,999" not in page
    assert "Loss of mlm" in titles(page)


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: new\nseed: 1\n")
    assert "Nothing is logged yet" in report_page([str(folder)])


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_what_is_no_run_is_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no run: it has no config.yaml") as error:
        mlpt("report", tmp_path / name)
    assert "\n" not in str(error.value)


def test_several_runs_are_compared_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rule, lift in (("uniform", 0.0), ("exp3", -0.5)):
        for seed in range(3):
            make_run(tmp_path / f"{rule}-{seed}", {"rule": rule}, seed, lift=lift)
    names = [f"{rule}-{seed}" for rule in ("uniform", "exp3") for seed in range(3)]
    assert mlpt("report", *names).strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    # Equal seeds have equal noise, so that the lift alone is left between them.
    assert "held_out/mlm: rule=exp3 is lower than rule=uniform." in page
    assert page.count('role="tab"') >= 2 * 4
    with pytest.raises(UserError, match="exists"):
        mlpt("report", *names)
    mlpt("report", *names, "--overwrite")
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match="no earlier result"):
        mlpt("report", *names, "--overwrite")


@pytest.fixture
def sweep(tmp_path):
    return make_sweep(tmp_path / "sweep")


def test_a_sweep_shows_its_trials_and_its_front(sweep):
    mlpt("report", sweep)
    page = (sweep / "report.html").read_text()
    assert {"All trials", "train.optimizer.lr", "dev/mean against sparsity"} <= set(titles(page))
    assert "The best trial is b: train.optimizer.lr=0.001" in page
    assert "3 of 4 trials are beaten by none in both: b, c, a." in page
    assert "/elsewhere" not in page


def points(count, seeds=1):
    """Trials whose loss is (log10 lr + 3)² and a little of the layers; the third parameter does nothing."""
    drawn = np.random.default_rng(0)
    found = []
    for at in range(count):
        rate, layers, word = 10.0 ** drawn.uniform(-5, -1), int(drawn.integers(1, 5)), str(drawn.choice(["a", "b"]))
        for seed in range(seeds):
            loss = (np.log10(rate) + 3) ** 2 + 0.1 * layers
            parameters = {"lr": float(rate), "layers": layers, "word": word}
            found.append(TrialRow(f"t{at}-{seed}", "finished", seed, 1000, parameters, {"dev/mean": float(loss)}))
    return found


def test_what_mattered_in_a_sweep_is_what_its_loss_is_made_of():
    found = importance_of(points(60), ["word", "lr", "layers"], "dev/mean")
    assert found.points == 60
    assert found.share["lr"] > 1  # predictions that are as good as random are twice the variance off
    assert 0 < found.share["layers"] < 0.2
    assert abs(found.share["word"]) < 0.02
    assert found.explained > 0.9


def test_noise_is_not_explained_and_too_few_points_are_not_ranked():
    shuffled = [
        replace(trial, metrics={"dev/mean": float(noise)})
        for trial, noise in zip(points(40), np.random.default_rng(1).normal(size=40), strict=True)
    ]
    found = importance_of(shuffled, ["word", "lr", "layers"], "dev/mean")
    assert found.explained < 0.2
    assert importance_of(points(9), ["lr", "layers"], "dev/mean") is None
    assert importance_of(points(9, seeds=3), ["lr", "layers"], "dev/mean") is None  # seeds make no points
    assert importance_of(points(40), ["lr"], "dev/mean") is None


def test_the_page_of_a_sweep_says_what_mattered_and_what_that_is_worth(sweep):
    def page_of(trials):
        return own(render("", "", {}, sweep_page.sections(replace(read_sweep(str(sweep)), trials=trials))))

    page = page_of(points(24))
    assert "Importance for dev/mean" in headings(page)
    assert "From 24 points; of the variance" in page
    assert "a hint at most" in page
    assert "Not told from 9 finished points: it takes 10 that differ" in page_of(points(9))


def test_a_sweep_under_way_shows_the_runs_it_has(sweep):
    (sweep / "trials.parquet").unlink()
    for seed, rate in enumerate((1e-3, 1e-2)):
        make_run(sweep / f"trials/t{seed}", {"train": {"lr": rate}}, seed, lift=rate)
    page = report_page([str(sweep)])
    assert "The best trial is t" in page
    assert "train.lr" in titles(page)


def test_fifty_long_runs_fit_into_a_page_that_can_be_sent(tmp_path):
    """50 runs of 100,000 logged steps, as columns: reading as many lines is a matter of the disk."""
    from mlpt.reporting import report
    from mlpt.reporting.columns import Column, Metrics
    from mlpt.reporting.records import read_run

    record = read_run(str(make_run(tmp_path / "run")))
    steps = np.arange(1, 100_001, dtype=float)
    records = []
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(size=len(steps))
        names = ("loss/mlm", "loss/cse", "loss/atd", "loss/dtd", "dev/mlm", "dev/cse", "gradient_norm", "learning_rate")
        columns = {name: Column(steps, 3 + noise) for name in (*names, "mixture/mlm", "mixture/cse")}
        columns |= {"tokens": Column(steps, steps * 1024), "tokens_per_second": Column(steps, 2000 + noise)}
        config = {"seed": seed % 10, "rule": seed // 10}
        records.append(type(record)(**{**vars(record), "metrics": Metrics(columns), "config": config}))
    page = report._of_runs(records, None)
    assert len(page.encode()) < 15e6


def test_the_commands_of_several_runs_can_be_copied_from_folders_with_spaces(tmp_path):
    places = [make_run(tmp_path / f"my run {seed}", seed=seed) for seed in (0, 1)]
    page = html.unescape(own(report_page([str(place) for place in places])))
    lines = [line for line in re.findall(r"mlpt pretrain [^\n<]*", page) if "ANOTHER" in line]
    told = [shlex.split(line) for line in dict.fromkeys(lines)]
    assert told == [["mlpt", "pretrain", f"{place}/config.yaml", "run_dir=ANOTHER"] for place in places]
