"""What a page is made of: sections with figures, tables and text. Every figure says in words what it shows."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Dark enough on white for lines and text (4.5 : 1 and more); beyond their number dashes tell lines apart.
COLOURS = ("#0067a5", "#c2410c", "#00735c", "#9c2a8c", "#7a5c00", "#5048c9", "#a61b29", "#3f5d73")
DASHES = ("solid", "dash", "dot", "dashdot")
_PATH = re.compile(r"(?<![\w:/.])(?:file://)?(~?/[^\s'\",;:()\[\]{}<>]+)")


@dataclass(frozen=True)
class Picture:
    """A figure of plotly (a mapping with `data` and `layout`), a title, and what it shows in words.

    about  what is drawn, in which unit; not needed where the title says it.
    """

    title: str
    figure: Mapping[str, Any]
    summary: str
    about: str = ""


@dataclass(frozen=True)
class Tabs:
    """Figures of one thing seen in several ways, one at a time; on paper all of them."""

    label: str
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class Table:
    """A table whose cells are text or numbers; `hint` stands below it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    hint: str = ""


@dataclass(frozen=True)
class Text:
    """A listing, folded in where it is long; `copied` ones are commands."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Token:
    """A piece of text; a space before it says that a word begins.

    made    what stands there instead; None: the piece itself.
    masked  whether that is the mask token.
    wanted  what is to be predicted there, where it is not the piece itself.
    level   0 (nothing to say) to 4 (hardest).
    guided  a guide chose it.
    tip     shown where the pointer is.
    """

    text: str
    made: str | None = None
    masked: bool = False
    wanted: str | None = None
    level: int = 0
    guided: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Passage:
    """A text, and what is to be seen in it in words."""

    tokens: Sequence[Token]
    told: str


@dataclass(frozen=True)
class Passages:
    """Texts under tabs, such as one for each of some steps. `key`: sample tokens and what they mean."""

    title: str
    tabs: Mapping[str, Sequence[Passage]]
    about: str = ""
    key: Sequence[tuple[Token, str]] = ()


Element = Picture | Tabs | Table | Text | Passages


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    title: str
    parts: Sequence[Element] = field(default_factory=tuple)
    intro: str = ""


def look(at: int) -> dict[str, Any]:
    """Colour and dash of the series number `at`."""
    return {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[at // len(COLOURS) % len(DASHES)]}


def trace(
    name: str,
    xs: np.ndarray,
    ys: np.ndarray,
    line: Mapping[str, Any],
    group: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One line of a figure, as float32; traces of one `group` (default: the name) share a legend entry."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": group or name,
        "x": np.asarray(xs, dtype=np.float32),
        "y": np.asarray(ys, dtype=np.float32),
        "line": {"width": 2, **line},
        **more,
    }


def band(name: str, xs: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, group: str) -> list[dict[str, Any]]:
    """The area between two curves, without a legend entry or hover of its own."""
    quiet = {"hoverinfo": "skip", "meta": {"quiet": True}}
    edge = {"width": 0, "color": colour}
    upper = trace(name, xs, high, edge, group, **quiet)
    lower = trace(name, xs, low, edge, group, fill="tonexty", fillcolor=faint(colour, 0.16), **quiet)
    return [upper, lower]


def faint(colour: str, opacity: float) -> str:
    """`colour` (#rrggbb) as an rgba() of that opacity."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def layout(x_title: str, y_title: str, **more: Any) -> dict[str, Any]:
    """The look that all figures share."""
    axis = {"gridcolor": "#e3e7ec", "zerolinecolor": "#b8c0ca", "linecolor": "#8894a2", "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": x_title}, **more.pop("xaxis", {})},
        "yaxis": {**axis, "title": {"text": y_title}, **more.pop("yaxis", {})},
        "hovermode": "x unified",
        "showlegend": False,  # the page has a legend of buttons
        "margin": {"l": 56, "r": 14, "t": 12, "b": 44},
        "height": 300,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1d2733"},
        "hoverlabel": {"font": {"size": 12}, "namelength": 40},
        **more,
    }


def number(value: Any) -> str:
    """A number for people; text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not np.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """3:05 min, 2:10 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02} min"
    return f"{hours}:{minutes - 60 * hours:02} h" if minutes - 60 * hours < 60 else f"{hours + 1}:00 h"


def course(name: str, xs: np.ndarray, ys: np.ndarray, unit: str = "", along: str = "tokens") -> str:
    """From where to where a curve goes, and its extremes."""
    after = f" {unit}" if unit else ""
    if not len(ys):
        return f"{name}: no values yet."
    if len(ys) == 1:
        return f"{name}: {number(float(ys[0]))}{after}, measured once."
    first, last = number(float(ys[0])), number(float(ys[-1]))
    if np.ptp(ys) == 0:
        return f"{name}: {last}{after} throughout."
    told = [f"{name}: {first} → {last}{after}"]
    for word, at in (("least", int(np.argmin(ys))), ("largest", int(np.argmax(ys)))):
        if ys[at] not in (ys[0], ys[-1]):
            told.append(f"{word} {number(float(ys[at]))} at {number(float(xs[at]))} {along}")
    return f"{', '.join(told)}."


def escape(text: Any) -> str:
    """`text` for HTML."""
    return html.escape(str(text), quote=True)


def without_paths(text: str, own: str) -> str:
    """`text` with absolute paths cut to their last part, but for the run's `own` location: a page is passed on."""

    def cut(found: re.Match[str]) -> str:
        path = found[1]
        if path == own or path.startswith(f"{own}/") or path.count("/") < 1:
            return found[0]
        return f"…/{path.rstrip('/').rpartition('/')[2]}"

    return _PATH.sub(cut, text)
