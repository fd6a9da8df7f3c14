"""The comparison of subnetworks in docs/papers/tamt.md: losses and downstream scores of each way to make masks.

    python -m mlpt.bench.mask_study --source FOLDER --tasks-dir FOLDER --out FOLDER [--seeds 3] [--steps 1200] ...

A seed pretrains a dense encoder, makes masks of it in every way at every sparsity, and measures them on its untouched
weights. Each cell has a folder of its own: started again, the study goes on where it was.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.finetune import finetune
from mlpt.errors import UserError
from mlpt.launch import pretrain
from mlpt.models.encoder import load_encoder
from mlpt.settings import load_settings
from mlpt.sparsity.artefacts import MaskFile, base_hash, fit, load_masks, save_masks
from mlpt.sparsity.commands import evaluate_files, prune
from mlpt.sparsity.compare import correlation
from mlpt.training.checkpoint import Checkpoints

METHODS = ("random", "magnitude", "imp", "tamt_mlm", "tamt_kd", "tamt_mlm_kd", "meta", "joint")
WITH_WEIGHTS = ("meta", "joint")  # weights train along with the masks
ROUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of iterative pruning


@dataclass(frozen=True)
class Study:
    """What is run; lengths in optimiser steps of 32 x 64 tokens."""

    source: str
    out: Path
    steps: int
    mask_steps: int
    tasks_dir: str | None
    tasks: tuple[str, ...]
    task_steps: int
    task_rate: float

    def dense(self, seed: int) -> Path:
        """The folder of a seed's dense model, pretrained if it is not there yet: 3 layers x 128, vocabulary 8,192."""
        folder = self.out / f"seed{seed}" / "dense"
        model = {"architecture": "bert", "hidden_size": 128, "layers": 3, "heads": 4}
        self._pretrain(folder, seed, self.steps, {"model": model})
        return folder / "model"

    def masks(self, method: str, sparsity: float, seed: int) -> Path:
        """The mask file of a cell, made if it is not there yet; it belongs to the seed's dense weights."""
        dense = self.dense(seed)
        cell = self.out / f"seed{seed}" / f"{method}-{sparsity:g}"
        if method in ("random", "magnitude"):
            if not (cell / "masks.safetensors").is_file():
                prune(str(dense), method, sparsity, str(cell), seed)
            return cell / "masks.safetensors"
        if method == "imp":  # one run makes the masks of all levels
            folder = self.out / f"seed{seed}" / "imp"
            interval = max(1, self.mask_steps // (len(ROUNDS) - 1))
            iterative = {"interval": interval, "levels": ROUNDS}
            masks = {"method": "imp", "train": ["weights", "heads"], "iterative": iterative}
            self._from_dense(folder, dense, seed, interval * (len(ROUNDS) - 1), {"masks": masks}, lr=1e-4)
            return folder / "masks" / f"{sparsity:g}" / "masks.safetensors"
        settings, rate = trained_settings(method, sparsity)
        self._from_dense(cell, dense, seed, self.mask_steps, settings, rate)
        return self._for_dense(cell, dense) if method in ("meta", "joint") else cell / "model" / "masks.safetensors"

    def measure(self, method: str, sparsity: float, seed: int) -> dict[str, Any]:
        """{mlm_loss, perplexity, kd_cosine, kd_mse, density, scores} of a cell; what is there already is read back."""
        result = self.out / f"seed{seed}" / "results" / f"{method}-{sparsity:g}.json"
        found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
        lacks_scores = bool(self.tasks_dir) and not found.get("scores")
        lacks_own = method in WITH_WEIGHTS and "own_mlm_loss" not in found
        if found and not (lacks_scores or lacks_own):
            return found
        dense = self.dense(seed)
        masks = None if method == "dense" else str(self.masks(method, sparsity, seed))
        if not found:
            found = evaluate_files(str(dense), str(self.out / "blocks"), masks, batches=32)
            found |= {"method": method, "sparsity": sparsity, "seed": seed, "scores": {}}
        if lacks_own:
            own = self.out / f"seed{seed}" / f"{method}-{sparsity:g}" / "model"
            masks_beside = str(own / "masks.safetensors")
            found["own_mlm_loss"] = evaluate_files(str(own), str(self.out / "blocks"), masks_beside, batches=32)[
                "mlm_loss"
            ]
        if lacks_scores:
            found["scores"] = self._downstream(dense, masks, f"{method}-{sparsity:g}", seed)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found, indent=1))
        return found

    def _downstream(self, dense: Path, masks: str | None, name: str, seed: int) -> dict[str, float]:
        values = {
            "model": str(dense),
            "masks": masks,
            "tasks": self.tasks,
            "source": {"data_dir": self.tasks_dir},
            "out": str(self.out / f"seed{seed}" / "finetuned" / name),
            "seeds": [seed],
            "learning_rates": [self.task_rate],
            "max_length": 64,  # tokens, as in pretraining
            "max_steps": self.task_steps,
            "keep_model": "none",
            "predict_test": False,
        }
        results = finetune(load_settings(FinetuneConfig, values), say=lambda text: None)
        return {one.task: next(iter(one.best.values()))[one.metric] for one in results}

    def _from_dense(
        self, folder: Path, dense: Path, seed: int, steps: int, settings: dict[str, Any], lr: float
    ) -> None:
        optimizer = {"lr": lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}
        train = {"optimizer": optimizer, "schedule": {"shape": "linear", "warmup": 0}}
        self._pretrain(folder, seed, steps, {"model": {"pretrained": str(dense)}, **settings}, train)

    def _pretrain(
        self, folder: Path, seed: int, steps: int, settings: dict[str, Any], train: dict[str, Any] | None = None
    ) -> None:
        """Run, resume or leave alone the run in `folder`: the one loop of all pretraining, in this process."""
        if (folder / "summary.json").is_file():
            return
        quiet = Console(quiet=True)
        if (folder / "config.yaml").is_file():
            pretrain(resume=folder, restart=not Checkpoints(folder / "checkpoints").steps(), console=quiet)
            return
        values = {
            "name": "mask-study",
            "seed": seed,
            "run_dir": str(folder),
            "blocks": str(self.out / "blocks"),
            "data": {"source": self.source, "block_size": 64, "vocab_size": 8192},
            "objectives": {"mlm": {}, "atd": None, "dtd": None, "cse": None},
            "meta": {"interval": 100, "lag": 0, "rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}}},
            "runtime": {"num_workers": 0},
            "report": {"progress": "off", "tensorboard": False},
        }
        lengths = {
            "steps": steps,
            "micro_batch_size": 32,
            "evaluate_batches": 16,
            "log_every": 50,
            "checkpoint_every": 200,
            "keep": 1,
        }
        values |= settings | {"train": lengths | (train or {})}
        pretrain("mometas", values, console=quiet)

    def _for_dense(self, cell: Path, dense: Path) -> Path:
        """The cell's masks as masks of the dense model: their own base trained along with them."""
        target = cell / "masks_of_dense" / "masks.safetensors"
        if not target.is_file():
            file, encoder = load_masks(cell / "model"), load_encoder(dense, {})
            known = file.description.model_dump(include={"sparsity", "seed", "step"})
            masks = fit(file, encoder, check_base=False) | {n: m for n, m in file.masks.items() if "pooler" in n}
            hashed = base_hash(encoder, list(file.masks))
            save_masks(MaskFile.of(masks, file.description.method, base_hash=hashed, **known), target)
        return target


def trained_settings(method: str, sparsity: float) -> tuple[dict[str, Any], float]:
    """What a kind of mask training changes against plain pretraining, and its learning rate."""
    scores = {"method": method, "sparsity": sparsity, "reset": {"interval": 50}}
    others = {"atd": None, "dtd": None, "cse": None}
    if method == "tamt_mlm":
        return {"masks": scores}, 1e-3
    if method == "tamt_kd":
        mixture = {"rule": "fixed", "weights": {"distill": 1}}
        masks = {**scores, "train": ["scores"], "reset": {"cadence": "before", "interval": 50}}
        return {"masks": masks, "objectives": {"mlm": {}, "distill": {}, **others}, "meta": _meta(mixture)}, 1e-3
    if method == "tamt_mlm_kd":
        mixture = {"rule": "fixed", "weights": {"combined": 1}}
        return {"masks": scores, "objectives": {"mlm": {}, "combined": {}, **others}, "meta": _meta(mixture)}, 1e-3
    if method == "joint":
        return {"masks": {**scores, "train": ["scores", "weights", "heads"]}}, 1e-3
    if method == "meta":
        mixture = {"rule": "fixed", "weights": {"mlm": 1}}
        masks = {"method": "mask_scores", "sparsity": sparsity, "train": ["weights", "heads"]}
        meta = {"interval": 5, "lag": 0, "lookahead": {"start": 5}}
        meta["rules"] = {"mixture": mixture, "masks": {"rule": "mask_scores", "lr": 1.5e-3}}
        return {"masks": masks, "meta": meta}, 1e-4
    raise UserError(f"there is no method '{method}' in the study; there are {', '.join(METHODS)}")


def _meta(mixture: dict[str, Any]) -> dict[str, Any]:
    return {"interval": 100, "lag": 0, "rules": {"mixture": mixture}}


def table(results: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """Markdown, a line a sparsity and method: means (and standard deviations) over seeds."""
    head = [
        "sparsity",
        "masks",
        "MLM loss (nats)",
        "on its own weights",
        "KD loss (cosine)",
        "KD loss (MSE)",
        *tasks,
        "mean of tasks",
        "seeds",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    cells: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for one in results:
        cells.setdefault((one["sparsity"], one["method"]), []).append(one)
    for (sparsity, method), same in sorted(cells.items(), key=lambda item: item[0][0]):
        scored = [one["scores"] for one in same if one["scores"]]
        words = [f"{sparsity:.0%}", method, *(_spread([one[key] for one in same]) for key in LOSSES)]
        own = [one["own_mlm_loss"] for one in same if "own_mlm_loss" in one]
        words.insert(3, _spread(own) if own else "")
        words += [f"{100 * statistics.mean(one[task] for one in scored):.1f}" if scored else "" for task in tasks]
        words.append(_spread([100 * statistics.mean(one.values()) for one in scored], 1) if scored else "")
        lines.append("| " + " | ".join([*words, str(len(same))]) + " |")
    return "\n".join(lines)


LOSSES = ("mlm_loss", "kd_cosine", "kd_mse")
COEFFICIENTS = ("pearson", "spearman")


def _spread(values: list[float], digits: int = 3) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def correlations(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each pretraining loss with the mean downstream score over all masks, with the points of the plot."""
    scored = [one for one in results if one["scores"] and one["method"] != "dense"]
    scores = [statistics.mean(one["scores"].values()) for one in scored]
    return {loss: correlation([one[loss] for one in scored], scores) for loss in LOSSES} if len(scored) >= 3 else {}


def main(words: Sequence[str] | None = None) -> None:
    """Run or finish the study, seed by seed; the table and `results.json` are written after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="text, or a prepared folder")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks-dir", help="folder of GLUE and SuperGLUE files; without it no downstream scores")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "stsb", "cb", "docs_package"])
    parser.add_argument("--task-steps", type=int, default=100)
    parser.add_argument("--task-rate", type=float, default=1e-3, help="learning rate of fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="of dense pretraining")
    parser.add_argument("--mask-steps", type=int, default=300)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.9])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args(words)
    study = Study(
        given.source,
        given.out,
        given.steps,
        given.mask_steps,
        given.tasks_dir,
        tuple(given.tasks),
        given.task_steps,
        given.task_rate,
    )
    results: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        plan = [("dense", 0.0), *((method, sparsity) for sparsity in given.sparsities for method in given.methods)]
        for method, sparsity in plan:
            results.append(study.measure(method, sparsity, seed))
            found = {"results": results, "correlation": correlations(results)}
            (given.out / "results.json").write_text(json.dumps(found, indent=1))
        print(table(results, given.tasks if given.tasks_dir else []), flush=True)
    for loss, found in correlations(results).items():
        words = [f"{name} {'undefined' if found[name] is None else f'{found[name]:.2f}'}" for name in COEFFICIENTS]
        print(f"{loss} and downstream scores of {found['masks']} masks: {', '.join(words)}")


if __name__ == "__main__":
    main()
