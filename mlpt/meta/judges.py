"""What a teacher is judged by: how well the student does after its batches, on labelled tasks or on `meta.target`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mlpt.data.sources import ALL
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext, each_share
from mlpt.meta.engines.base import Forward
from mlpt.models.pairs import counted_positions
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted, mlm_token
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.tasks import TASKS, Example, TaskData, TaskSource, load_task
from mlpt.tasks.episodes import MLM, EpisodeConfig, Episodes
from mlpt.tasks.text_to_text import (
    FormatConfig,
    TextToTextConfig,
    Writer,
    Written,
    format_of,
    random_windows,
    stack_windows,
)
from mlpt.tasks.two_moons import TWO_MOONS

if TYPE_CHECKING:
    from mlpt.data.blocks import Blocks


class Weighted(NamedTuple):
    """Inputs of an objective, and the weight of their loss."""

    objective: str
    inputs: Inputs
    weight: float


class Judgement(NamedTuple):
    """What the student learns from after the teacher's batches, if anything, and what it is then judged by."""

    support: list[Weighted]
    query: list[Weighted]


class Judge(Protocol):
    """Gives the batches that judge one update; `warnings` are of what it found, told once."""

    warnings: list[str]

    def draw(self, context: MetaContext) -> Judgement: ...


class TargetJudge:
    """Held-out losses of `meta.target`, without any learning in between."""

    def __init__(self, rows: int | None):
        """rows: of a query, shared out among the target's arms; None: those of a training batch."""
        self.warnings: list[str] = []
        self._rows = rows

    def draw(self, context: MetaContext) -> Judgement:
        size = each_share(self._rows or context.batch_size, len(context.target))
        step = context.step
        return Judgement(
            [],
            [
                Weighted(context.arms[arm].objective, context.dev_inputs(arm, size, 0, step, step), weight)
                for arm, weight in context.target.items()
            ],
        )


class TaskJudge:
    """Labelled tasks as sequences in and sequences out: support and query of one task for every update.

    objective  of the model: its loss is the mean cross entropy at the labelled positions.
    by_inputs  published: the loss counts every position whose input is no padding (`counted_positions`).
    formats    of the tasks; default: as they were meant to be.

    Raises `UserError` for a task without labelled rows, and for a tokenizer without task tokens.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        source: TaskSource,
        episodes: EpisodeConfig,
        rows: int | None,
        by_inputs: bool,
        objective: str,
        context: MetaContext,
        formats: FormatConfig | None = None,
    ):
        self.warnings: list[str] = []
        self._rows, self._by_inputs, self._objective = rows, by_inputs, objective
        blocks: Blocks = context.sources[ALL].train  # type: ignore[assignment]
        self._vocabulary = blocks.vocabulary
        length = blocks.block_size
        tokenizer = blocks.tokenizer()
        if mlm_token(self._vocabulary) is None:
            raise UserError(
                "the text has a tokenizer without task tokens, which labelled tasks need: set data.tokenizer=task_bpe, "
                "or take meta.target in place of meta.rules.teacher.tasks"
            )
        self._written: dict[str, list[Written]] = {}
        asked = (formats or FormatConfig()).model_dump()
        config = TextToTextConfig(max_length=max(8, length), overlap=length // 2, **asked)
        for name in tasks:
            if name != MLM:
                self._written[name] = self._labelled(name, source, tokenizer, config)
        sizes = {name: len(self._written[name]) if name != MLM else len(context.sources[ALL].dev) for name in tasks}
        self._episodes = Episodes(sizes, episodes, context.seed)

    def _labelled(self, name: str, source: TaskSource, tokenizer: Any, config: TextToTextConfig) -> list[Written]:
        data, examples = labelled_rows(name, source)
        self.warnings += data.warnings()
        writer = Writer(data.task, tokenizer, config)
        written = writer.write(examples)
        lost = writer.without_answer(written)
        if lost == len(examples):
            raise UserError(
                f"no answer of task '{name}' fits into a window of {config.max_length} tokens: raise data.block_size"
            )
        if lost:
            self.warnings.append(
                f"task '{name}': the answers of {lost} of {len(examples)} rows are in no window of "
                f"{config.max_length} tokens, and teach 'no answer'"
            )
        return written

    def draw(self, context: MetaContext) -> Judgement:
        episode = self._episodes.draw(context.step, self._rows or context.batch_size)
        sides = []
        for side, rows in (("support", episode.support), ("query", episode.query)):
            generator = numpy_generator(context.seed, f"teacher/windows/{side}", context.step)
            noise = torch_generator(context.seed, f"teacher/mlm/{side}", context.step)
            named = [self._episodes.names[task] for task in episode.tasks]
            written = [
                self._masked(int(row), context, noise) if name == MLM else self._written[name][int(row)]
                for name, row in zip(named, rows, strict=True)
            ]
            stacked, _ = stack_windows(written, random_windows(written, generator))
            sides.append([Weighted(self._objective, self._inputs(stacked).to(_device(context)), 1.0)])
        return Judgement(*sides)

    def _masked(self, row: int, context: MetaContext, noise: torch.Generator) -> Written:
        """A masked row of meta-dev text, as if it were labelled."""
        tokens = context.sources[ALL].dev.batch(np.array([row])).tokens
        inputs, labels = mask_counted(
            tokens, self._vocabulary, noise, CountedMaskingConfig(), mlm_token(self._vocabulary)
        )
        return Written(inputs.numpy(), labels.numpy(), np.zeros_like(inputs.numpy()))

    def _inputs(self, written: Written) -> Inputs:
        tokens, labels = torch.from_numpy(written.inputs), torch.from_numpy(written.targets)
        return labelled_inputs(tokens, labels, self._vocabulary.pad, self._by_inputs)


def labelled_rows(name: str, source: TaskSource) -> tuple[TaskData, list[Example]]:
    """A task, and its training rows with a label. Raises `UserError` where there are none."""
    data = load_task(name, source, ["train"])
    examples = [one for one in data.splits.get("train", []) if one.label is not None]
    if not examples:
        raise UserError(f"the teacher is judged by task '{name}', which has no labelled training rows; leave it out")
    return data, examples


def labelled_inputs(tokens: Tensor, labels: Tensor, pad: int, by_inputs: bool = False) -> Inputs:
    """Inputs of labelled sequences, both (batch, length) int64, `labels` padded where nothing is asked."""
    positions = counted_positions(tokens, labels, pad, by_inputs).view(-1).nonzero().squeeze(1)
    return Inputs(tokens, attention_mask_of(tokens, pad), positions, labels.reshape(-1)[positions])


def why_no_tasks(tasks: Sequence[str], source: TaskSource, setting: str) -> str | None:
    """Why a run can't be judged by these tasks, in one line; None: it can."""
    own = [one.name for one in source.own]
    for name in tasks:
        if name == MLM:
            continue
        if name not in TASKS:
            return (
                f"{setting}.tasks names '{name}', which is no task{'; own tasks have no format' if name in own else ''}"
            )
        try:
            format_of(TASKS[name], TextToTextConfig())
        except UserError as error:
            return f"{setting}.tasks: {error}"
        if name not in TWO_MOONS and source.data_dir is None:
            return (
                f"task '{name}' needs labelled rows: set {setting}.source.data_dir to the folder of the original files"
            )
    return None


def loss_of(forward: Forward, batches: Sequence[Weighted]) -> Tensor:
    """The weighted sum of the losses of some batches."""
    return torch.stack([one.weight * forward(one.objective, one.inputs) for one in batches]).sum()


def _device(context: MetaContext) -> torch.device:
    device: torch.device = next(context.model.parameters()).device
    return device
