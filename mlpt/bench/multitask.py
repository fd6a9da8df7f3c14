"""What a step of MT-uncertainty costs beside a plain multi-task step of the same batch, and what each saving changes.

`python -m mlpt.bench.multitask` prints the rows. Five tasks of random rows as long as GLUE's, a 4 x 128 encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.downstream.multitask.data import Collator
from mlpt.downstream.multitask.model import MultitaskModel, TaskBatch
from mlpt.downstream.multitask.scoring import Scorer, ScoringConfig
from mlpt.downstream.samplers import MtUncertainty
from mlpt.downstream.samplers import Row as TaskRow
from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder, seeded
from mlpt.randomness import numpy_generator
from mlpt.tasks.features import Features

CASE = "multitask"
OUTPUTS = {"cola": 2, "sst2": 2, "rte": 2, "mrpc": 2, "mnli": 3}
LENGTHS = {"cola": 12, "sst2": 14, "rte": 70, "mrpc": 53, "mnli": 40}  # median tokens of a row, about GLUE's
ROWS, BATCH, VOCABULARY, MAX_LENGTH, STEPS = 2000, 32, 2048, 128, 6
EXACT = ScoringConfig(precision="float32")
PUBLISHED = ScoringConfig(precision="float32", dropout="as_trained", max_tokens=10**9)


class FullLength(Collator):
    """Pads every row to the full length, as the published loaders do."""

    def __call__(self, rows: Sequence[TaskRow]) -> TaskBatch:
        batch = super().__call__(rows)
        missing = (0, MAX_LENGTH - batch.input_ids.shape[1])
        ids, mask = (nn.functional.pad(one, missing) for one in (batch.input_ids, batch.attention_mask))
        return replace(batch, input_ids=ids, attention_mask=mask)


@dataclass(frozen=True)
class Workplace:
    """A model in training mode, its data, and an optimiser."""

    model: MultitaskModel
    collate: Collator
    optimizer: torch.optim.AdamW

    def train(self, rows: list[TaskRow]) -> None:
        """One optimiser step on `rows`."""
        self.model(self.collate(rows)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def scorer(self, config: ScoringConfig) -> Scorer:
        collate = FullLength(self.collate.tasks) if config is PUBLISHED else self.collate
        return Scorer(config, self.model, collate)


def run() -> list[Row]:
    """Cost of a step against a plain one (ratio = plain / ours: 0.5 is twice the time), and overlaps of chosen rows."""
    place = workplace()
    return [*step_costs(place), *overlaps(place), staleness(place)]


def describe(row: Row) -> str:
    """The row as a line for people."""
    return f"{row.name:60s} {row.ours:.4f} {row.unit}" + (f", {1 / row.ratio:.2f}x a plain step" if row.ratio else "")


def workplace(warm_up: int = 10) -> Workplace:
    """The bench's model after a few steps, so that its predictions differ between rows."""
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    }
    with seeded(0, "bench"):
        stock = BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=MAX_LENGTH, **sizes))
    model = MultitaskModel(ConditionalEncoder(stock, ConditionalConfig(), len(OUTPUTS)), OUTPUTS).train()
    collate = Collator([_random_rows(name, classes) for name, classes in OUTPUTS.items()])
    place = Workplace(model, collate, torch.optim.AdamW(model.parameters(), lr=1e-4))
    sampler = make_sampler()
    for step in range(warm_up):
        place.train(sampler.batch(step, place.scorer(EXACT)))
    return place


def make_sampler(rescore_every: int = 1) -> MtUncertainty:
    """MT-uncertainty over the five tasks; equal calls give equal candidates."""
    config = MtUncertainty.Config(rescore_every=rescore_every)
    return MtUncertainty(config, list(OUTPUTS), [ROWS] * len(OUTPUTS), list(OUTPUTS.values()), BATCH, seed=0)


def step_costs(place: Workplace, rounds: int = 2) -> list[Row]:
    """Seconds a step with each way of scoring, next to the same step on the same rows without any."""
    sampler = make_sampler()
    candidates = [sampler.candidates() for _ in range(STEPS)]
    ways: dict[str, tuple[ScoringConfig, int]] = {
        "published scoring: float32, dropout, padded to 128": (PUBLISHED, 1),
        "rows of similar length together, no padding to 128": (EXACT, 1),
        "and bf16 (default)": (ScoringConfig(), 1),
        "and scored every 2 steps": (ScoringConfig(), 2),
        "and scored every 3 steps": (ScoringConfig(), 3),
    }
    chosen = [_best(place.scorer(EXACT), rows) for rows in candidates]

    def steps(scorer: Scorer | None = None, rescore_every: int = 1) -> Callable[[], None]:
        def taken() -> None:
            for step, rows in enumerate(chosen):
                if scorer is not None and step % rescore_every == 0:
                    scorer(candidates[step])
                place.train(rows)

        return taken

    scored = [steps(place.scorer(config), every) for config, every in ways.values()]
    plain, *each = seconds_interleaved(steps(), *scored, rounds=rounds)
    return [
        _row(f"step, {name}", seconds / STEPS, "seconds a step", plain / STEPS, plain / seconds)
        for name, seconds in zip(ways, each, strict=True)
    ]


def overlaps(place: Workplace, draws: int = 6) -> list[Row]:
    """Share of the chosen rows on which two ways of scoring agree, mean over sets of candidates."""
    sampler = make_sampler()
    candidates = [sampler.candidates() for _ in range(draws)]
    exact, bf16, together = (
        [_best(place.scorer(config), rows) for rows in candidates]
        for config in (EXACT, ScoringConfig(), EXACT.model_copy(update={"max_tokens": 10**9}))
    )
    dropped, again = ([_best(place.scorer(PUBLISHED), rows) for rows in candidates] for _ in range(2))
    return [
        _row("overlap with float32: all rows in one padded pass", _overlap(together, exact), "share of chosen rows"),
        _row("overlap with float32: bf16", _overlap(bf16, exact), "share of chosen rows"),
        _row("overlap with float32: dropout on, as published", _overlap(dropped, exact), "share of chosen rows"),
        _row("overlap of dropout with itself", _overlap(dropped, again), "share of chosen rows"),
    ]


def staleness(place: Workplace, draws: int = 6) -> Row:
    """Scored every 2 steps: share of the second step's rows that scoring the same pool again would choose too."""
    sampler, scorer = make_sampler(), place.scorer(EXACT)
    cached, fresh = [], []
    for _ in range(draws):
        pool = sampler.candidates()
        order = [pool[at] for at in sampler.ranking(pool, scorer(pool))]
        place.train(order[:BATCH])
        cached.append(order[BATCH : 2 * BATCH])
        fresh.append(_best(scorer, order[BATCH:]))
    return _row("overlap with scoring every step: every 2 steps", _overlap(cached, fresh), "share of chosen rows")


def _best(scorer: Scorer, rows: list[TaskRow]) -> list[TaskRow]:
    return [rows[at] for at in make_sampler().ranking(rows, scorer(rows))[:BATCH]]


def _overlap(some: list[list[TaskRow]], others: list[list[TaskRow]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(some, others, strict=True)]))


def _random_rows(name: str, classes: int) -> Features:
    generator = numpy_generator(0, f"rows of {name}")
    lengths = np.clip(generator.lognormal(np.log(LENGTHS[name]), 0.4, ROWS).astype(int), 4, MAX_LENGTH)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = generator.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    return Features(tokens, None, offsets, generator.integers(0, classes, ROWS), np.arange(ROWS), pad=0)


def _row(name: str, ours: float, unit: str, peer: float | None = None, ratio: float | None = None) -> Row:
    return Row(CASE, name, ours, peer, ratio, unit, peak_bytes(), machine())


if __name__ == "__main__":
    for row in run():
        print(describe(row))
