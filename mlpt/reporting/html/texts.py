"""What the teacher writes, what guides choose and which tokens are hard: the sample texts of a run, over time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlpt.reporting.columns import Column, Metrics
from mlpt.reporting.html.curves import lines, with_noise
from mlpt.reporting.html.parts import Passage, Passages, Picture, Section, Token, number
from mlpt.reporting.records import Record
from mlpt.reporting.samples import Sample

_MOMENTS = 6  # that are shown
_EDGES = (1.0, 2.0, 4.0, 6.0)  # nats from which on a token is of the next level of hardness
_NATS = "nats"
TEACHER = "teacher"
_HEADINGS = {
    "masking": "What masking makes of a text",
    "guide": "What the guide chooses",
    TEACHER: "What the teacher writes",
}
_FIGURES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (  # title, unit, which figures
    ("Entropy of what the teacher writes", _NATS, lambda name: name.startswith("entropy")),
    (
        "Mask token, copies, commonest token",
        "share",
        lambda name: name.startswith(("mask_share", "copied", "one_token")),
    ),
    ("Losses around the teacher", _NATS, lambda name: name.endswith("_loss") or name == "auxiliary"),
)
_CHANGED = (
    (Token(" token", made="[MASK]", masked=True), "hidden by the mask token"),
    (Token(" token", made=" another"), "another token in its place"),
)
_WANTED = (Token(" token", wanted=" word"), "small below: what is to be predicted instead of the text's own token")
_GUIDED = (Token(" token", guided=True), "double line: chosen by the guide")
_LEVELS = tuple((Token(" token", level=at + 1), f"from {edge:g} nats") for at, edge in enumerate(_EDGES))


def teacher_section(record: Record) -> Section:
    """Empty for runs without a teacher."""
    figures = record.metrics.under("meta/teacher")
    return Section("Teacher", [*_shown(record, [TEACHER]), *_teacher_figures(record.metrics, figures)])


def texts_section(record: Record) -> Section:
    """Empty where the run has kept no texts."""
    hardness = _hardness(record)
    others = [kind for kind in _HEADINGS if kind != TEACHER]
    return Section("Texts", [*([hardness] if hardness else []), *_shown(record, others)])


def _teacher_figures(metrics: Metrics, figures: Mapping[str, Column]) -> Iterator[Picture]:
    """Those of one unit together; each other one alone."""
    left = dict(figures)
    for title, unit, belongs in _FIGURES:
        columns = {name.replace("_", " "): left.pop(name) for name in list(left) if belongs(name)}
        if columns:
            yield lines(title, metrics, columns, unit)
    for name, column in left.items():
        words = {"h": "agreement h", "dot": "inner product"}.get(name, name.replace("_", " "))
        about = "Running mean over updates, in a band of the running spread."
        yield with_noise(f"Teacher: {words}", metrics, {words: column}, words, about)


def _moments(record: Record) -> list[Sample]:
    """At most `_MOMENTS`, the first and the last among them."""
    samples = record.samples
    if len(samples) <= _MOMENTS:
        return samples
    return [samples[at] for at in np.linspace(0, len(samples) - 1, _MOMENTS).round().astype(int)]


def _shown(record: Record, kinds: Sequence[str]) -> list[Passages]:
    """One for each objective of these kinds whose work can be shown."""
    found = []
    moments = _moments(record)
    for name in dict.fromkeys(name for sample in moments for name in sample.objectives):
        of_name = {sample.step: sample.objectives[name] for sample in moments if name in sample.objectives}
        last = list(of_name.values())[-1]
        if last["kind"] not in kinds:
            continue
        rows = [row for one in of_name.values() for row in one["rows"]]
        key = list(_CHANGED)
        key += [_WANTED] if any(_asked(row, at) for row in rows for at in range(len(row["text"]))) else []
        key += [_GUIDED] if any("hard" in row for row in rows) else []
        split = {"train": "training", "dev": "held-out"}.get(last["split"], last["split"])
        about = f"The same {split} texts at every moment, as {name} would train on them; point at a token for its loss."
        tabs = {f"step {step:,}": [_made(row) for row in one["rows"]] for step, one in of_name.items()}
        found.append(Passages(f"{_HEADINGS[last['kind']]}: {name}", tabs, about, key))
    return found


def _made(row: Mapping[str, Any]) -> Passage:
    tokens = []
    kinds, hard = row["kinds"], row.get("hard")
    for at, text in enumerate(row["text"]):
        loss, asked = row["losses"][at], _asked(row, at)
        made = row["made"][at] if kinds[at] != "=" else None
        wanted = row["wanted"][at] if asked else None
        tip = "" if loss is None else f"{text.strip()}: {number(loss)} nats"
        tokens.append(Token(text, made, kinds[at] == "m", wanted, guided=bool(hard and hard[at]), tip=tip))
    count = len(tokens)
    known = [loss for loss in row["losses"] if loss is not None]
    told = [
        f"{count} tokens: {kinds.count('m')} masked ({_share(kinds.count('m'), count)}), {kinds.count('r')} replaced "
        f"({_share(kinds.count('r'), count)})"
    ]
    told += [f"{sum(hard)} chosen by the guide"] if hard else []
    told += [f"mean loss of the {len(known)} to be predicted {number(float(np.mean(known)))} nats"] if known else []
    return Passage(tokens, f"{'; '.join(told)}.")


def _asked(row: Mapping[str, Any], at: int) -> bool:
    """True where another token is asked for than that of the text."""
    wanted = row["wanted"][at]
    return wanted is not None and wanted != row["text"][at]


def _hardness(record: Record) -> Passages | None:
    tabs = {f"step {one.step:,}": [_by_loss(row) for row in one.hardness] for one in _moments(record) if one.hardness}
    about = (
        "Held-out texts of which every token was masked once, a seventh of them at a time: the model's loss at it. "
        "Darker, with a thicker line, is harder; point at a token for the number."
    )
    return Passages("Hard tokens", tabs, about, _LEVELS) if tabs else None


def _by_loss(row: Mapping[str, Any]) -> Passage:
    known = [(loss, text.strip()) for loss, text in zip(row["losses"], row["text"], strict=True) if loss is not None]
    tokens = [
        Token(text) if loss is None else Token(text, level=_level(loss), tip=f"{text.strip()}: {number(loss)} nats")
        for loss, text in zip(row["losses"], row["text"], strict=True)
    ]
    if not known:
        return Passage(tokens, "No token of it can be masked.")
    largest = {text: loss for loss, text in sorted(known)}  # of a token that stands there twice
    first = sorted(largest, key=lambda text: -largest[text])[:5]
    hardest = ", ".join(f"“{text}” {number(largest[text])}" for text in first)
    easy = sum(loss < _EDGES[0] for loss, _ in known)
    mean = number(round(float(np.mean([loss for loss, _ in known])), 2))
    told = f"Mean {mean} nats over {len(known)} tokens; {easy} below {_EDGES[0]:g}. Hardest: {hardest}."
    return Passage(tokens, told)


def _level(loss: float) -> int:
    return sum(loss >= edge for edge in _EDGES)


def _share(some: int, count: int) -> str:
    return f"{100 * some / max(1, count):.0f} %"
