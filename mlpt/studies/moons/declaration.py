"""What the two-moons study declares: who writes the pretraining batches, label counts, seeds and budget."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mlpt.settings import Settings
from mlpt.studies.declaration import listed_seeds
from mlpt.tasks.two_moons import SIZES


class WriterSettings(Settings):
    """Who makes the batches of a cell, and how it learns; published values are the defaults.

    rule         none: masked language modelling. hard, soft: a teacher by that rule. masker: a table of scores, by
                 the hard rule.
    mlm          whether masked text is a labelled task of the teacher, drawn as often as the points. It is of the dev
                 texts; published, of the training texts.
    query_share  of the labelled points: only these judge, only the others teach; 0: all do both.
    labels       the label counts at which this cell is run; null: all.
    """

    rule: Literal["none", "hard", "soft", "masker"] = "none"
    writes: Literal["pairs", "inputs"] = "pairs"
    meta_weight: float = Field(1.0, ge=0)
    mlm: bool = False
    query_share: float = Field(0.0, ge=0, lt=1)
    support_steps: int = Field(1, ge=0)
    inner_steps: int = Field(1, ge=1)
    inner_lr: float = Field(0.1, gt=0)
    entropy: float = Field(0.0, ge=0)
    baseline: float | None = Field(None, ge=0, lt=1)
    masker_lr: float = Field(0.02, gt=0)
    labels: list[int] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "WriterSettings":
        if self.rule == "masker" and self.entropy:
            raise ValueError("a masker has no entropy bonus here: leave entropy out")
        if self.rule in ("hard", "masker") and self.inner_steps > 1:
            raise ValueError("inner_steps are of the soft rule: set support_steps")
        return self


class MoonsStudy(Settings):
    """The whole study.

    steps     of pretraining, in which student and teacher both take one step; the schedule does not know the end, so a
              study with more steps goes on where a shorter one ended.
    texts     of a step's batch. rows: of support and of query.
    rate, warmup   of the power-law schedule, rate * step**-0.5 after the warm-up.
    batches   of finetuning, by label count: ten steps an epoch as published.
    vocabulary  all 407 tokens as published, or only those that any text or point has: less than half the work.
    compare   cells against `against`, at every label count.
    """

    work: Literal["two_moons"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str
    decision: str
    cells: dict[str, WriterSettings] = Field(min_length=1)
    against: str
    compare: list[str] = Field(default_factory=list)
    labels: list[int] = Field(default_factory=lambda: list(SIZES))
    seeds: Annotated[list[int], BeforeValidator(listed_seeds)] = Field(min_length=1)
    steps: int = Field(gt=0)
    texts: int = Field(4, gt=0)
    rows: int = Field(4, gt=0)
    rate: float = Field(0.08, gt=0)
    warmup: int = Field(1000, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    epochs: int = Field(100, gt=0)
    finetuning_rate: float = Field(0.04, gt=0)
    vocabulary: Literal["all", "used"] = "all"
    mode: Literal["plain", "recorded", "compiled"] = "recorded"
    save_every: int = Field(100, gt=0, description="steps")

    @field_validator("labels")
    @classmethod
    def _known(cls, labels: list[int]) -> list[int]:
        unknown = [one for one in labels if one not in SIZES]
        if unknown or not labels:
            raise ValueError(f"two moons has {', '.join(map(str, SIZES))} labels")
        return labels

    @model_validator(mode="after")
    def _named(self) -> "MoonsStudy":
        for name in [self.against, *self.compare]:
            if name not in self.cells:
                raise ValueError(f"there is no cell '{name}'; there are {', '.join(self.cells)}")
        return self

    def labels_of(self, cell: str) -> list[int]:
        """The label counts at which a cell is run."""
        own = self.cells[cell].labels
        return [one for one in self.labels if own is None or one in own]
