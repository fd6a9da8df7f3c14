"""The page of one run: everything that its folder holds, from the figures to the command that repeats it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from mlpt.errors import pretrain_command
from mlpt.reporting.columns import Column, Metrics
from mlpt.reporting.html.curves import lines, noisy, scaled, stacked, with_noise
from mlpt.reporting.html.mask_figures import mask_section
from mlpt.reporting.html.parts import Picture, Section, Table, Text, duration, number, without_paths
from mlpt.reporting.html.texts import teacher_section, texts_section
from mlpt.reporting.html.timeline import timeline_section
from mlpt.reporting.records import CONFIG, Record

_ESTIMATES = {
    "reward": ("Rewards", "reward"),
    "hypergradient": ("Hypergradients", "gradient of the meta-dev loss"),
}
_NATS = "nats"
_ELSEWHERE = ("dev_loss", "teacher")  # figures of the meta-learner with a place of their own
# Groups and columns that have a place of their own; whatever else is logged is shown after them.
_SHOWN = {
    *("tokens", "tokens_per_second", "learning_rate", "gradient_norm", "skipped_steps", "meta_stall_seconds", "policy"),
    "data_share",
    *("loss", "dev", "held_out", "held_out_before", "mixture", "meta"),
}


def tiles(record: Record) -> dict[str, str]:
    """The key figures of a run."""
    found = {
        "state": record.state,
        "steps": number(record.steps),
        "tokens": number(record.tokens),
        "training time": duration(record.seconds),
    }
    if record.seconds and record.tokens:
        found["tokens/s"] = number(record.tokens / record.seconds)
    before, after = _held_out(record)
    for name, loss in list(after.items())[:4]:
        started = f"{number(before[name])} → " if name in before else ""
        found[f"held-out {name}"] = f"{started}{number(loss)} nats"
    if isinstance(mfu := record.summary.get("mfu"), float):
        found["MFU"] = f"{100 * mfu:.3g} % of matrix products"
    if "policy" in record.metrics.columns:
        found["policies adopted"] = number(float(record.metrics.columns["policy"].values[-1]))
    waited = _waited(record)
    if waited is not None:
        found["waited for meta-learning"] = f"{100 * waited:.2g} % of the time"
    return found


def sections(record: Record) -> list[Section]:
    """Those that have something to show."""
    made = [
        Section("Losses", list(_losses(record))),
        Section("Mixture and meta-learning", list(_meta(record))),
        teacher_section(record),
        texts_section(record),
        mask_section(record),
        Section("Optimisation", list(_optimisation(record.metrics))),
        Section("Speed and memory", list(_speed(record.metrics))),
        Section("Other figures", list(_others(record.metrics))),
        timeline_section(record),
        Section("Settings and environment", list(_settings(record))),
    ]
    if not record.metrics.columns:
        made[0] = Section("Losses", (), "Nothing is logged yet: the run has not come to its first figures.")
    return [section for section in made if section.parts or section.intro]


def _losses(record: Record) -> Iterator[Picture | Table]:
    metrics = record.metrics
    before, after = _held_out(record)
    train, dev, seen = metrics.under("loss"), metrics.under("dev"), metrics.under("meta/dev_loss")
    names = [*dict.fromkeys([*train, *dev, *seen, *before])]
    last = float(metrics.last_step())
    for name in names:
        others = {}
        if name in dev:
            others["held-out (meta-dev)"] = dev[name]
        if name in seen:
            others["as the meta-learner saw it"] = seen[name]
        ends = [(step, known[name]) for step, known in ((0.0, before), (last, after)) if name in known]
        if ends:
            others["held-out (test)"] = Column(np.array([s for s, _ in ends]), np.array([loss for _, loss in ends]))
        column = train.get(name, Column(np.empty(0), np.empty(0)))
        yield noisy(f"Loss of {name}", metrics, column, _NATS, others=others, name="training")
    if before or after:
        rows = [[name, before.get(name), after.get(name), *_gain(before, after, name)] for name in names]
        hint = "Mean loss on the test split in nats, the same batches and noise before and after."
        if record.summary.get("unigram_entropy") is not None:
            hint += f" Unigram entropy of that text: {number(record.summary['unigram_entropy'])} nats a token."
        yield Table("Held-out losses", ["objective", "before", "after", "difference"], rows, hint)


def _gain(before: Mapping[str, float], after: Mapping[str, float], name: str) -> list[float | None]:
    return [after[name] - before[name] if name in before and name in after else None]


def _meta(record: Record) -> Iterator[Picture]:
    metrics = record.metrics
    mixture = metrics.under("mixture")
    if mixture:
        yield stacked("Mixture", metrics, mixture, record.first_mixture)
    groups = dict.fromkeys(name.split("/")[1] for name in metrics.columns if name.startswith("meta/"))
    for name in groups:
        inner = metrics.under(f"meta/{name}")
        if not inner or name in _ELSEWHERE:
            continue
        title, unit = _ESTIMATES.get(name, (name.replace("_", " ").capitalize(), name.replace("_", " ")))
        yield with_noise(title, metrics, inner, unit, "Running mean over updates, in a band of the running spread.")
    scalars = {name: column for name, column in metrics.under("meta").items() if name not in ("peak_bytes", "seconds")}
    for name, column in scalars.items():
        words = name.replace("_", " ")
        unit = _NATS if name == "entropy" or name.endswith("loss") else words
        yield lines(f"Meta-learner: {words}", metrics, {words: column}, unit)


def _optimisation(metrics: Metrics) -> Iterator[Picture]:
    columns = metrics.columns
    if "learning_rate" in columns:
        yield lines("Learning rate", metrics, {"learning rate": columns["learning_rate"]}, "learning rate")
    if "gradient_norm" in columns:
        about = "Before clipping, of the last step of each log line; logarithmic."
        yield noisy("Gradient norm", metrics, columns["gradient_norm"], "norm", about, log=True)
    if "skipped_steps" in columns and columns["skipped_steps"].values[-1] > 0:
        skipped = {"steps left out": columns["skipped_steps"]}
        yield lines("Steps left out", metrics, skipped, "steps", "Their loss or gradient was not finite.")


def _speed(metrics: Metrics) -> Iterator[Picture]:
    columns, meta = metrics.columns, metrics.under("meta")
    if "tokens_per_second" in columns:
        yield noisy(
            "Speed", metrics, columns["tokens_per_second"], "tokens/s", "Everything counts that training waited for."
        )
    if (making := columns.get("data_share")) is not None:
        percent = scaled({"making batches": making}, lambda share: 100 * share)
        yield lines(
            "Time for batches",
            metrics,
            percent,
            "% of the time",
            "What steps waited for rows to be read, corrupted and moved.",
            "%",
        )
    stall = columns.get("meta_stall_seconds")
    if stall is not None and stall.values[-1] > 0:
        spent = metrics.seconds_at(stall.steps)
        share = Column(stall.steps, 100 * stall.values / np.maximum(spent, 1e-9), stall.missing)
        about = "Of the training time so far, what was spent on snapshots and on waiting for answers."
        yield lines("Waited for meta-learning", metrics, {"waited": share}, "% of the time", about, "%")
    if "seconds" in meta:
        yield lines("Work of the meta-learner", metrics, {"an update": meta["seconds"]}, "seconds", unit="s")
    memory = {name: column for name, column in metrics.columns.items() if name.endswith("peak_bytes")}
    if memory:
        named = {name.rpartition("/")[0] or "training": column for name, column in memory.items()}
        about = "The most memory held so far by the process that measured it."
        yield lines("Peak memory", metrics, scaled(named, lambda size: size / 2**20), "MiB", about, "MiB")


def _others(metrics: Metrics) -> Iterator[Picture]:
    groups: dict[str, dict[str, Column]] = {}
    for name, column in metrics.columns.items():
        top = name.split("/")[0]
        if top not in _SHOWN and not name.endswith("peak_bytes"):
            group, _, leaf = name.rpartition("/")
            groups.setdefault(group or name, {})[leaf or name] = column
    for group, columns in groups.items():
        yield lines(group.replace("_", " ").replace("/", ", "), metrics, columns, group.rpartition("/")[2])


def _settings(record: Record) -> Iterator[Table | Text]:
    config = f"{record.place}/{CONFIG}"
    yield Text("Repeat this run", pretrain_command(config, "run_dir=ANOTHER"))
    if record.starts and (last := record.starts[-1].get("environment")):
        rows = [[name, _told(value)] for name, value in last.items() if name != "packages"]
        rows += [[name, version] for name, version in (last.get("packages") or {}).items()]
        yield Table("Environment", ["", "of the newest start"], rows)
    listing = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True)
    yield Text("Configuration, resolved", without_paths(listing, record.place), folded=True)
    if record.summary:
        listing = yaml.safe_dump(dict(record.summary), sort_keys=False, allow_unicode=True)
        yield Text("Summary", without_paths(listing, record.place), folded=True)


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _held_out(record: Record) -> tuple[dict[str, float], dict[str, float]]:
    """Test losses before and after training, as far as they are known."""
    return record.metrics.first("held_out_before"), record.newest("held_out")


def _waited(record: Record) -> float | None:
    stall = record.metrics.columns.get("meta_stall_seconds")
    if stall is None or not record.seconds or "policy" not in record.metrics.columns:
        return None
    return float(stall.values[-1]) / record.seconds
