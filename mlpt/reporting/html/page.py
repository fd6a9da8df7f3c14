"""One page from its sections: the figures as data, plotly's script once, and no address of anything outside."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from mlpt.reporting.html.parts import Element, Passages, Picture, Section, Table, Tabs, Text, escape, number
from mlpt.reporting.html.passages import key_html, panel_html

MARK = '<meta name="generator" content="mlpt report">'


def render(
    title: str, subtitle: str, tiles: Mapping[str, str], sections: Sequence[Section], version: str | None = None
) -> str:
    """The whole page. `tiles` are its key figures; a page with a `version` asks its server for another one."""
    maker = _Maker()
    body = [maker.section(at, section) for at, section in enumerate(sections)]
    links = "".join(f'<a href="#s{at}">{escape(section.title)}</a>' for at, section in enumerate(sections))
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
    asks = f' data-version="{escape(version)}"' if version else ""
    made = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"{MARK}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_file('style.css')}</style></head>\n"
        f'<body{asks}><a class="skip" href="#main">Skip to the figures</a>\n'
        f'<header><h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>'
        f'<dl class="tiles">{shown}</dl></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n<main id="main">{"".join(body)}</main>\n'
        f"<footer>Made by mlpt on {escape(made)}. Figures are thinned; extremes stay.</footer>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{_file('script.js')}</script>\n</body></html>\n"
    )


class _Maker:
    """Numbers the figures of a page."""

    def __init__(self) -> None:
        self._figures = 0
        self._tabs = 0

    def section(self, at: int, section: Section) -> str:
        intro = f"<p>{escape(section.intro)}</p>" if section.intro else ""
        parts = "".join(self._part(part) for part in section.parts)
        inside = f'<h2 id="h{at}">{escape(section.title)}</h2>{intro}<div class="grid">{parts}</div>'
        return f'<section id="s{at}" aria-labelledby="h{at}">{inside}</section>\n'

    def _part(self, part: Element) -> str:
        if isinstance(part, Picture):
            return f'<div class="card">{self._picture(part)}</div>'
        if isinstance(part, Tabs):
            return self._tabbed(part.label, {label: self._picture(one) for label, one in part.pictures.items()})
        if isinstance(part, Passages):
            return self._passages(part)
        if isinstance(part, Table):
            return _table(part)
        return _text(part)

    def _passages(self, part: Passages) -> str:
        about = f'<p class="about">{escape(part.about)}</p>' if part.about else ""
        head = f"<h3>{escape(part.title)}</h3>{about}{key_html(part.key)}"
        panels = {label: panel_html(label, passages) for label, passages in part.tabs.items()}
        return self._tabbed(part.title, panels, head, "wide", chosen=len(panels) - 1)

    def _picture(self, picture: Picture) -> str:
        name = f"f{self._figures}"
        self._figures += 1
        about = f'<p class="about">{escape(picture.about)}</p>' if picture.about else ""
        data = Figure(picture.figure).to_json().replace("<", "\\u003c")  # checks it, and packs its numbers
        height = picture.figure["layout"].get("height", 300)
        return (
            f'<figure><h3 id="{name}-t">{escape(picture.title)}</h3>{about}'
            f'<div class="plot" id="{name}" role="img" aria-labelledby="{name}-t" aria-describedby="{name}-c" '
            f'style="min-height:{height}px"></div>'
            f'<div class="legend" role="group" aria-label="Series of: {escape(picture.title)}"></div>'
            f'<figcaption id="{name}-c">{escape(picture.summary)}</figcaption>'
            f'<script type="application/json" id="{name}-d">{data}</script></figure>'
        )

    def _tabbed(self, label: str, panels: Mapping[str, str], head: str = "", kind: str = "", chosen: int = 0) -> str:
        """The `panels`, HTML by the label of their tab, one at a time; the one of number `chosen` first."""
        name = f"t{self._tabs}"
        self._tabs += 1
        buttons, bodies = [], []
        for at, (title, inside) in enumerate(panels.items()):
            buttons.append(
                f'<button role="tab" id="{name}-{at}" aria-controls="{name}-{at}-p" '
                f'aria-selected="{"true" if at == chosen else "false"}" tabindex="{0 if at == chosen else -1}">'
                f"{escape(title)}</button>"
            )
            hidden = "" if at == chosen else " data-hidden"
            bodies.append(
                f'<div role="tabpanel" id="{name}-{at}-p" aria-labelledby="{name}-{at}"{hidden}>{inside}</div>'
            )
        bar = f'<div role="tablist" aria-label="{escape(label)}">{"".join(buttons)}</div>'
        return f'<div class="card tabs {kind}">{head}{bar}{"".join(bodies)}</div>'


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(one)}</th>' for one in table.headings)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in table.rows)
    hint = f'<p class="about">{escape(table.hint)}</p>' if table.hint else ""
    return (
        f'<div class="card wide"><h3>{escape(table.title)}</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{hint}</div>"
    )


def _cell(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"<td{' class=num' if is_number else ''}>{escape(number(value))}</td>"


def _text(part: Text) -> str:
    listing = f'<pre tabindex="0">{escape(part.text)}</pre>'
    if part.folded:
        return f'<details class="card wide"><summary>{escape(part.title)}</summary>{listing}</details>'
    return f'<div class="card wide"><h3>{escape(part.title)}</h3>{listing}</div>'


def _file(name: str) -> str:
    return (resources.files("mlpt.reporting.html") / name).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """A listing of plain values."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
