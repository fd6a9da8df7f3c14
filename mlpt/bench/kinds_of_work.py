"""The kinds of work that `mlpt bench faults` disturbs: small, each a command, what goes on with it, and how it ends.

All begin from one tiny model, pretrained a moment before, its blocks, and two tasks of made-up rows.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mlpt.training.tracker import read_metrics

TINY = (
    *("data.max_bytes=150000", "data.docs_bytes=150000", "data.vocab_size=300", "data.block_size=32"),
    *("model.hidden_size=32", "model.layers=1", "model.heads=2", "model.architecture=bert"),
    *("train.batch_size=8", "train.micro_batch_size=8", "train.evaluate_batches=2", "train.log_every=1"),
    *("train.checkpoint_every=20", "train.evaluate_every=100", "report.tensorboard=false", "report.progress=off"),
)
META = ("meta.interval=10", "meta.lag=5")
SPACE = '''"""Which learning rate?"""
from ray import tune
from mlpt.tuning.space import Space
space = Space(
    parameters={"train.optimizer.lr": tune.grid_search([1e-3, 2e-3, 4e-3])}, metrics={"dev/mlm": "min"},
    tokens=60_000, trials=1, evaluations=4, search="grid", scheduler="none",
)
'''
_CURVES = ("step", "loss", "losses", "dev", "held_out", "held_out_before", "mixture", "policy")
_NOT_THE_SAME = {"seconds", "steps_per_second", "examples_per_second", "run_dir", "folder", "trial_id"}  # in two runs
_ASIDE = {"checkpoints", "tune", ".ray", "logs"}


@dataclass(frozen=True)
class Work:
    """One kind. `begin` are words after `mlpt`, with {out} for its folder; `go_on` those that go on with it.

    calm     words that are added for the run that nobody disturbs.
    workers  how the titles of the processes begin that do the work; none: the command itself does it.
    saves    the name of the folders that hold what it goes on from.
    has_trials  it reports those that cannot work, and goes on with the others.
    """

    name: str
    begin: tuple[str, ...]
    go_on: tuple[str, ...]
    calm: tuple[str, ...] = ()
    workers: str = ""
    saves: str = "checkpoints"
    trains_by_ray: bool = False
    learns: bool = False
    has_trials: bool = False

    def words(self, out: Path) -> list[str]:
        """What starts it, into `out`."""
        return [word.replace("{out}", str(out)) for word in self.begin]

    def words_to_go_on(self, out: Path) -> list[str]:
        """What goes on with it; a run that has no checkpoint yet begins again, and so does what has nothing at all."""
        if not any((out / name).is_file() for name in ("config.yaml", "sweep.yaml")):
            return self.words(out)
        words = [word.replace("{out}", str(out)) for word in self.go_on]
        nothing_saved = self.trains_by_ray and not any(out.glob("checkpoints/*/COMMITTED"))
        return [*words, "--restart"] if nothing_saved else words


def progress(out: Path) -> int:
    """Steps in the metrics of all that lies in `out`, and scored parts: grows while the work goes on."""
    lines = [_last_step(path) for path in out.rglob("metrics.jsonl")]
    return sum(lines) + len(list(out.glob("parts/*.arrow")))


def end_of(out: Path) -> dict[str, list[str]]:
    """All that two runs of one work must have in common, to the last bit: curves, results, tensors, scores."""
    found = defaultdict(list)
    for path in sorted(out.rglob("*")):
        parts = list(path.relative_to(out).parts)
        if path.is_file() and not _ASIDE & set(parts) and (said := _said_by(path)) is not None:
            if parts[0] == "trials":
                parts[1] = "*"  # each sweep names its trials anew
            found["/".join(parts)].append(said)
    return {name: sorted(contents) for name, contents in found.items()}


def every_kind(folder: Path, blocks: str) -> list[Work]:
    """All kinds; `folder` holds `model`, a run by `first_words` on `blocks`, and what `write_inputs` writes."""
    combined: tuple[str, ...] = (
        "objectives={combined: {mlm_weight: 1, distill_weight: 1}, mlm: {}, atd: null, dtd: null}",
    )
    combined += ("meta.rules={mixture: {rule: fixed, weights: {combined: 1}}}", "masks.method=tamt_mlm_kd")
    combined += ("masks.sparsity=0.6", "masks.reset.interval=20")
    two = ("runtime.num_workers=2", "train.micro_batch_size=4")
    network = "objectives.teacher_made.network={hidden_size: 16, layers: 1, heads: 1, intermediate_size: 32}"
    rows = [{"name": name, "first": "text", **_files(folder, name)} for name in ("parity", "size")]
    tasks = ("finetune", str(folder / "model"), "--tasks", "parity,size", f"source.own={json.dumps(rows)}")
    cells = ("max_steps=400", "evaluate_every=100", "checkpoint_every=20", "seeds=1,2", "learning_rates=1e-3")
    joint = ("--multitask", "max_steps=500", "evaluate_every=200", "checkpoint_every=20", "conditional.max_length=16")
    question = ("question", str(folder / "model"), blocks, "--out", "{out}", "batch_tokens=64")
    return [
        _again("multi-task fine-tuning", *tasks, *joint, "--out", "{out}"),
        _pretraining("pretraining, learned mixture", 1000, "quickstart", *META),
        _pretraining("pretraining, learned masks", 800, "tamt_meta", *META, "meta.lookahead.start=20"),
        _pretraining("pretraining by a teacher", 800, "denoiser", network, *META, "meta.rules.teacher.start=20"),
        _again("fine-tuning", *tasks, *cells, "max_length=16", "--workers", "2", "--out", "{out}", workers="_run_one"),
        Work(
            "sweep",
            ("tune", str(folder / "space.py"), *TINY[:-1], *META, "sweep.folder={out}", "sweep.concurrent=1"),
            ("tune", "--resume", "{out}"),
            workers="ImplicitFunc",
            has_trials=True,
        ),
        _again("questioning", *question, "--workers", "2", workers="_score", saves="parts"),
        _pretraining("pretraining, masks by distillation", 800, "quickstart", *combined, learns=False),
        _pretraining("pretraining, two workers", 600, "quickstart", *META, *two, calm=()),
    ]


def first_words(folder: Path) -> list[str]:
    """The run whose model the others begin from."""
    return [
        "pretrain",
        "quickstart",
        *TINY,
        *META,
        "train.steps=40",
        "model.layers=2",
        "runtime.num_workers=0",
        f"run_dir={folder}",
    ]


def write_inputs(folder: Path) -> None:
    """The space of the sweep and the rows of the two tasks."""
    (folder / "space.py").write_text(SPACE)
    for name in ("parity", "size"):
        for split, count in (("train", 200), ("dev", 40)):
            labels = [n % 2 if name == "parity" else n > count // 2 for n in range(count)]
            rows = [{"text": f"number {n}", "label": ["yes", "no"][label]} for n, label in enumerate(labels)]
            Path(_files(folder, name)[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pretraining(
    name: str,
    steps: int,
    recipe: str,
    *words: str,
    learns: bool = True,
    calm: tuple[str, ...] = ("runtime.num_workers=0",),
) -> Work:
    more = (f"train.steps={steps}", "runtime.hang_timeout=15", "runtime.max_failures=100", "run_dir={out}")
    begin = ("pretrain", recipe, *TINY, *words, *more)
    go_on = ("pretrain", "--resume", "{out}")
    return Work(name, begin, go_on, calm, "RayTrainWorker", trains_by_ray=True, learns=learns)


def _again(name: str, *words: str, workers: str = "", saves: str = "checkpoints") -> Work:
    """Work that the same command goes on with; undisturbed, it is done in one process."""
    return Work(name, words, words, ("--workers", "1") if workers else (), workers, saves)


def _files(folder: Path, name: str) -> dict[str, str]:
    return {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "dev")}


def _last_step(metrics: Path) -> int:
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


def _said_by(path: Path) -> str | None:
    """What a file must say in every run, as text; None if it may differ."""
    readers: dict[str, Callable[[Path], Any]] = {
        "metrics.jsonl": lambda path: [[line.get(key) for key in _CURVES] for line in read_metrics(path.parent)],
        "result.json": lambda path: _without(json.loads(path.read_text())),
        "results.json": lambda path: _without(json.loads(path.read_text())),
        "trials.parquet": lambda path: [_without(row) for row in sorted_rows(path)],
    }
    if path.name in readers:
        return json.dumps(readers[path.name](path))
    if path.suffix in (".safetensors", ".arrow"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def sorted_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a sweep's table by their points."""
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: str([row[key] for key in row if "parameter" in key]))


def _without(value: Any) -> Any:
    """A result without what is different each time."""
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in _NOT_THE_SAME}
    return [_without(one) for one in value] if isinstance(value, list) else value
