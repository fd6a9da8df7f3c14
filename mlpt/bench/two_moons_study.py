"""The two-moons comparison in docs/papers/metalmo.md: who makes the pretraining batches, at several label counts.

    python -m mlpt.bench.two_moons_study --out FOLDER [--seeds 5] [--steps 2000] [--labels 10 40 160] [--who mlm soft]

Pretraining runs are `mlpt pretrain` runs with folders of their own: started again, the study goes on where it was. The
students of a label count are then finetuned all at once, whatever pretrained them.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from mlpt.bench.many import ADAMW, MAX_NORM, SIZES, points_loss
from mlpt.data.config import DataConfig
from mlpt.data.prepare import prepare
from mlpt.data.tokenizers import load_tokenizer
from mlpt.data.two_moons import TOKENS, write_corpus
from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.text_to_text import label_scores
from mlpt.models.teacher import Student, build_student
from mlpt.randomness import numpy_generator
from mlpt.run.launch import pretrain
from mlpt.storage.checkpoint import Checkpoints
from mlpt.tasks.text_to_text import TextToTextConfig, Writer, stack_windows
from mlpt.tasks.two_moons import load_two_moons
from mlpt.training.many import Forward, Many
from mlpt.training.schedule import power_law

NO_OTHERS = dict.fromkeys(["mlm", "atd", "dtd", "cse"])  # objectives of the recipe that are taken out
EPOCHS, PEAK, WARMUP = 100, 0.04, 10
BATCHES = {10: 1, 20: 2, 40: 4, 80: 8, 160: 16}
HARD = {"rule": "teacher_hard"}
SOFT = {"rule": "teacher_soft", "meta_weight": 100}
# Who makes the batches: settings of the objective `teacher_made` and of its rule; None: masked language modelling.
WHO: dict[str, tuple[dict[str, Any], dict[str, Any]] | None] = {
    "mlm": None,
    "hard": ({"teacher": "pairs"}, HARD),
    "soft": ({"teacher": "pairs", "samples": "soft"}, SOFT),
    "soft inputs": ({"teacher": "inputs", "samples": "soft"}, SOFT),
    "masker": ({"teacher": "masker"}, HARD | {"baseline": 0.9, "optimizer": {"lr": 0.02, "weight_decay": 0}}),
}


def settings_of(who: str, labels: int, seed: int, steps: int, interval: int, blocks: Path, run: Path) -> dict[str, Any]:
    """One pretraining run: the published network and optimiser, batches of 16 texts."""
    made = WHO[who]
    objectives: dict[str, Any] = {"counted_mlm": {}}
    rules: dict[str, Any] = {"mixture": {"rule": "uniform"}}
    if made is not None:
        network = SIZES.model_dump() | {"attention": "sdpa"}
        objectives["teacher_made"] = {"network": network, "seed": seed, **made[0]}
        tasks = [f"two_moons_{labels}", *(["mlm"] if who.startswith("soft") else [])]
        rules = {
            "mixture": {"rule": "fixed", "weights": {"teacher_made": 1}},
            "teacher": {"tasks": tasks, "rows": 4, **made[1]},
        }
    sizes = {"hidden_size": SIZES.hidden_size, "layers": SIZES.layers, "heads": SIZES.heads}
    return {
        "name": "two-moons",
        "seed": seed,
        "run_dir": str(run),
        "data": {"source": str(blocks)},
        "model": {"architecture": "metalmo", **sizes, "intermediate_size": SIZES.intermediate_size, "dropout": 0.1},
        "objectives": objectives,
        "meta": {"interval": interval, "lag": interval, "target": "counted_mlm", "rules": rules},
        "train": {
            "steps": steps,
            "batch_size": 16,
            "micro_batch_size": 16,
            "clip": MAX_NORM,
            "optimizer": {"lr": 0.08, "betas": [0.9, 0.98], "eps": 1.0e-6, "weight_decay": 0.01},
            "schedule": {"shape": "power_law", "warmup": min(1000, steps // 4)},
            "log_every": 100,
            "evaluate_batches": 8,
            "checkpoint_every": 1000,
            "keep": 1,
        },
        "runtime": {"num_workers": 0},
        "report": {"progress": "off", "tensorboard": False},
    }


def prepared(out: Path) -> Path:
    """The corpus as blocks, one text each."""
    blocks = out / "blocks"
    if not (blocks / "manifest.json").is_file():
        sources, tokenizer = write_corpus(out / "corpus")
        config = DataConfig(
            source=sources,
            documents="lines",
            tokenizer=tokenizer,
            packing="windows",
            block_size=TOKENS,
            dev_share=0,
            test_share=0.02,
        )
        prepare(config, str(blocks))
    return blocks


def pretrained(settings: dict[str, Any]) -> Path:
    """The model's folder of a run: read if it is finished, resumed if it was begun, run otherwise."""
    run = Path(settings["run_dir"])
    if not (run / "summary.json").is_file():
        quiet = Console(quiet=True)
        if (run / "config.yaml").is_file():
            pretrain(resume=run, restart=not Checkpoints(run / "checkpoints").steps(), console=quiet)
        else:
            pretrain("mometas", settings | {"objectives": {**NO_OTHERS, **settings["objectives"]}}, console=quiet)
    return run / "model"


def student_of(folder: Path, vocabulary: Vocabulary) -> Student:
    """A pretrained student, as networks that are trained in number are called."""
    student = build_student(SIZES, vocabulary, 0)
    missing = student.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys
    if {*missing} - {"head.decoder.weight"}:
        raise ValueError(f"{folder} lacks {missing}")
    return student


def points_of(labels: int, split: str, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and targets (points, length) of a split, and its labels (points,)."""
    data = load_two_moons(f"two_moons_{labels}", [split])
    written, _ = stack_windows(
        Writer(data.task, tokenizer, TextToTextConfig(max_length=8, overlap=4)).write(data.splits[split])
    )
    asked = torch.tensor([0 if one.label is None else one.class_id for one in data.splits[split]])
    return torch.from_numpy(written.inputs), torch.from_numpy(written.targets), asked


def finetune(students: Sequence[Student], labels: int, tokenizer: Any, seed: int = 0) -> list[float]:
    """Accuracy of each on the held-out points after EPOCHS epochs on so many labelled ones, all trained at once."""
    many = Many(students, points_loss, max_norm=MAX_NORM, **ADAMW)  # type: ignore[arg-type]
    inputs, targets, _ = points_of(labels, "train", tokenizer)
    size, step = BATCHES[labels], 0
    for epoch in range(EPOCHS):
        orders = np.stack(
            [numpy_generator(seed, f"order/{n}", epoch).permutation(labels) for n in range(len(students))]
        )
        for start in range(0, labels, size):
            rows = torch.from_numpy(orders[:, start : start + size])
            rate = PEAK * power_law(step + 1, WARMUP, float("inf"), -0.5)
            many.step((inputs[rows], targets[rows]), torch.full((len(students),), rate), seed=step)
            step += 1
    held_out, _, asked = points_of(labels, "held_out", tokenizer)

    def predicted(forward: Forward, tokens: Tensor) -> Tensor:
        return label_scores(forward(tokens, tokens != 0), tokens, (2, 5)).argmax(-1)

    return (many.apply(predicted, held_out) == asked).double().mean(1).tolist()


def table(results: dict[str, dict[int, list[float]]]) -> str:
    """Markdown: mean accuracy over seeds and each seed's, in percent, by who made the batches and how many labels."""
    counts = list(next(iter(results.values())))
    lines = ["| batches by | " + " | ".join(f"{n} labels" for n in counts) + " |", "|" + "---|" * (len(counts) + 1)]
    for who, by_labels in results.items():
        lines.append(f"| {who} | " + " | ".join(_cell(values) for values in by_labels.values()) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({', '.join(f'{100 * one:.1f}' for one in values)})"


def main(words: Sequence[str] | None = None) -> None:
    """Run or finish the study and print its table; accuracies go to OUT/results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--interval", type=int, default=5, help="steps between updates of the teacher")
    parser.add_argument("--labels", type=int, nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=list(WHO))
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    blocks = prepared(options.out)
    tokenizer = load_tokenizer(str(blocks / "tokenizer"))
    vocabulary = Vocabulary.of(tokenizer)
    cells = partial(settings_of, steps=options.steps, interval=options.interval, blocks=blocks)
    results: dict[str, dict[int, list[float]]] = {who: {} for who in options.who}
    for labels in options.labels:
        students = []
        for who in options.who:
            for seed in range(options.seeds):
                seen = f"-{labels}" if WHO[who] else ""  # plain masked modelling sees no labels
                run = options.out / f"{who.replace(' ', '-')}{seen}-seed{seed}"
                students.append(student_of(pretrained(cells(who, labels, seed, run=run)), vocabulary))
        found = finetune(students, labels, tokenizer)
        for place, who in enumerate(options.who):
            results[who][labels] = found[place * options.seeds : (place + 1) * options.seeds]
        (options.out / "results.json").write_text(json.dumps(results, indent=1))
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
