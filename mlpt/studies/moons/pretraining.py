"""Pretraining in the two-moons study: the seeds of one cell and label count go through their steps side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import Student, build_student, build_teacher
from mlpt.objectives.networks import NetworkConfig
from mlpt.outputs import new_file
from mlpt.randomness import address
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.moons.rows import MASKED, Batches, Rows
from mlpt.training.many import Forward, Many
from mlpt.training.many_maskers import ManyMaskers
from mlpt.training.many_teachers import FIGURES, ManyTaught, Taught
from mlpt.training.schedule import power_law

ADAMW = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
MAX_NORM = 5.0
WINDOW = 100  # steps whose mean figures stand in the history
_STATE = ("students", "student_moments", "teachers", "teacher_moments", "mean")


def network(study: MoonsStudy) -> NetworkConfig:
    """The published sizes of student and teacher."""
    sizes = {"hidden_size": 8, "heads": 2, "intermediate_size": 32, "layers": 2, "positions": 34}
    return NetworkConfig(**sizes, dropout=study.dropout, attention_dropout=study.dropout, attention="eager")


def masked_loss(forward: Forward, tokens: Tensor, at: Tensor, labels: Tensor) -> Tensor:
    """Of masked texts, which have no padding."""
    return token_cross_entropy(forward(tokens, at=at), labels, labels != 0)


class CellRuns:
    """The runs of a cell: `models` has the label count and the seed of each. Masked language modelling sees no labels:
    there its students of one seed are the same for all label counts."""

    def __init__(self, study: MoonsStudy, cell: str, rows: Rows, folder: Path):
        self.study, self.cell = study, cell
        self.writer = study.cells[cell]
        self.path = self.saved(folder, cell)
        self.name = self.path.stem
        counts = study.labels_of(cell)[: 1 if self.writer.rule == "none" else None]
        self.models = [(labels, seed) for labels in counts for seed in study.seeds]
        self.history: list[list[float]] = []  # step, and the mean figures of the WINDOW steps before it
        seeds, config = [seed for _, seed in self.models], network(study)
        students = [build_student(config, rows.vocabulary, seed) for seed in seeds]
        kind = self.writer.rule
        how = None
        if kind == "none":
            self.many: Any = Many(students, masked_loss, max_norm=MAX_NORM, mode=study.mode, **ADAMW)  # type: ignore[arg-type]
        else:
            how = Taught("soft" if kind == "soft" else "hard", **self._taught(), max_norm=MAX_NORM, **ADAMW)  # type: ignore[arg-type]
            mask = rows.vocabulary.mask
            if kind == "masker":
                size, rate = rows.vocabulary.size, self.writer.masker_lr
                self.many = ManyMaskers(students, size, how, mask, rate, MASKED, study.mode)
            else:
                teachers = [build_teacher(config, rows.vocabulary, seed) for seed in seeds]
                self.many = ManyTaught(students, teachers, how, mask, study.mode)
        share, mlm = self.writer.query_share, self.writer.mlm
        self.batches = Batches(rows, self.models, study.texts, study.rows, share, mlm)
        self.load()

    @staticmethod
    def saved(folder: Path, cell: str) -> Path:
        """The file in `folder` that a cell's runs are saved in."""
        return folder / f"{cell.replace(' ', '-')}.pt"

    @property
    def steps(self) -> int:
        """Taken so far."""
        return int(self.many.steps)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Train to step `until`, or till `stop()`, and save."""
        while self.steps < until and not stop():
            step = self.steps
            rate = self.study.rate * power_law(step + 1, self.study.warmup, float("inf"), -0.5)
            seed = address(0, f"moons/{self.name}", step)
            if self.writer.rule == "none":
                rates = torch.full((len(self.models),), rate)
                losses = self.many.step(self.batches.masked(step), rates, seed)
                figures = torch.zeros(len(losses), len(FIGURES))
                figures[:, 0] = losses
            elif self.writer.rule == "masker":
                figures = self.many.step(self.batches.maskers(step), rate, seed)
            else:
                figures = self.many.step(self.batches.taught(step), rate, seed)
            if step % WINDOW == 0:
                self.history.append([0.0] * (1 + len(FIGURES)))
            last = self.history[-1]
            last[0] = float(step + 1)
            for place, value in enumerate(figures.mean(0).tolist()):
                last[1 + place] += value / WINDOW  # steps come in whole windows
        self.save()

    def save(self) -> None:
        """Whole or not at all."""
        state: dict[str, Any] = {"steps": self.steps, "history": self.history}
        if self.writer.rule == "none":
            state |= {"students": self.many.weights, "student_moments": self.many.moments}
        else:
            state |= {name: getattr(self.many, name) for name in _STATE}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(self.path) as file:
            torch.save(state, file)

    def students(self, labels: int) -> Tensor:
        """(seeds, parameters) weights of those of a label count."""
        found: Tensor = self.many.weights if self.writer.rule == "none" else self.many.students
        if self.writer.rule == "none":
            return found
        return found[[place for place, (count, _) in enumerate(self.models) if count == labels]]

    def _taught(self) -> dict[str, Any]:
        return self.writer.model_dump(
            include={"writes", "inner_lr", "support_steps", "inner_steps", "meta_weight", "entropy", "baseline"}
        )

    def load(self) -> None:
        """Go on from what was saved, if anything was."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, weights_only=True)
        self.many.steps, self.history = state["steps"], state["history"]
        if self.writer.rule == "none":
            self.many.weights, self.many.moments = state["students"], tuple(state["student_moments"])
        else:
            for name in _STATE:
                setattr(self.many, name, state[name])


def student_at(weights: Tensor, study: MoonsStudy, rows: Rows) -> Student:
    """A student with flat weights (parameters,)."""
    student = build_student(network(study), rows.vocabulary, 0)
    sizes = [one.numel() for one in student.parameters()]
    with torch.no_grad():
        for parameter, part in zip(student.parameters(), weights.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
    return student
