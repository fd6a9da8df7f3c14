"""What mixing many domains costs: draws of 100 of them, an update of rule `dga`, and `prepare` with 100 domains.

BERT 4 x 256, vocabulary 8,192, 32 x 128 tokens a step, as in `mlpt bench meta`; the domains are slices of the
embedded corpus, a file each.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from mlpt.arms import LEARNED, arms_of
from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.bench.meta import BATCH, OBJECTIVES, RandomBlocks, Training, make_model
from mlpt.data import docs_corpus
from mlpt.data.corpora import find_files, plan
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.readers import read_segment
from mlpt.data.sources import ALL, Source, Sources
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import take_snapshot
from mlpt.randomness import numpy_generator
from mlpt.settings import load_settings
from mlpt.training.arm_rows import ArmRows
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig, make_optimizer
from mlpt.training.outer import Outer

DOMAINS = 100
TEXT_BYTES = 8 << 20
STEPS = 200  # of one timing of draws
INTERVAL = 50  # steps between updates
ROUNDS = 3


def run() -> Iterator[Row]:
    """Shares of a training step in percent, and `prepare` with 100 domains against the same text as one."""
    training = Training(RandomBlocks())
    step, update, recorded = seconds_interleaved(
        training.stratified_step, dga_update(training), training.recorded_step, rounds=ROUNDS
    )
    extra = update + max(0.0, recorded - step)
    yield _share(f"dga update with its gradients, interval {INTERVAL}, of training", extra / (INTERVAL * step))
    with tempfile.TemporaryDirectory() as folder:
        many, one = write_domains(Path(folder, "text"))
        trained = prepare(load_settings(DataConfig, {"source": one, "vocab_size": 8192}), f"{folder}/first")
        tokenizer, turn = f"{folder}/first/tokenizer", count()

        def preparing(**where: object) -> Callable[[], object]:
            config = load_settings(DataConfig, {**where, "tokenizer": tokenizer})
            return lambda: prepare(config, f"{folder}/out-{next(turn)}")

        preparing(sources=many)()
        yield _share(f"draws and rows of {DOMAINS} domains, of a step", seconds_to_draw(f"{folder}/out-0") / step)
        ours, peer = seconds_interleaved(preparing(sources=many), preparing(source=one), rounds=ROUNDS)
        tokens = sum(split.tokens for split in trained.splits.values())
        name = f"prepare with {DOMAINS} domains, against the same text as one"
        yield Row("mixture", name, tokens / ours, tokens / peer, peer / ours, "tokens/s", peak_bytes(), machine())


def dga_update(training: Training) -> Callable[[], object]:
    """A function that takes a snapshot of `training` and makes one update of rule `dga` from gradients that were kept,
    with a held-out batch of half the size of a training batch."""
    settings = {
        "rules": {"mixture": "dga"},
        "lookahead": {"engine": "alignment", "dev_batch_size": BATCH // 2, "start": 0},
        "target": "mlm",
    }
    config = load_settings(MetaConfig, settings)
    model = make_model().to(training.device)
    optimizer = make_optimizer(model, load_settings(OptimizerConfig, {}))
    sources = {ALL: Source(training.blocks, training.blocks, training.blocks)}
    learner = MetaLearner(config, model, optimizer, sources, arms_of(OBJECTIVES, [], None, texts=False), 0, BATCH)
    training.one_step_each()
    made = training.recorded_step()

    def update() -> None:
        learner.update(take_snapshot(training.model, training.optimizer, 4, 1e-3, moments=True, made=made), Evidence())

    return update


def seconds_to_draw(blocks: str) -> float:
    """Seconds a step to draw one of many domains for every block of a step, and to say which rows each gives."""
    sources = Sources.open(blocks)
    arms = arms_of(["mlm"], sources.domains, LEARNED, texts=False)
    config = TrainConfig(batch_size=BATCH, micro_batch_size=1, draw="stratified")
    work = ArmRows(config, None, sources, arms.every, arms.trained, arms.selecting(), Group(), seed=0)  # type: ignore[arg-type]
    meta = load_settings(MetaConfig, {"rules": {"mixture": "uniform"}})
    outer = Outer(meta, arms.trained, None, Group())
    begun = time.perf_counter()
    for step in range(STEPS):
        work.plan(step, outer.draw(work.exhausted()))
    return (time.perf_counter() - begun) / STEPS


def write_domains(folder: Path) -> tuple[dict[str, str], str]:
    """The embedded corpus dealt out to files of one domain each, in random order, and a folder of all of them."""
    folder.mkdir(parents=True)
    texts = [
        document.text
        for piece in plan(find_files([str(docs_corpus.collect(TEXT_BYTES))]))
        for segment in piece.segments
        for document in read_segment(segment)
    ]
    order = numpy_generator(0, "domains").permutation(len(texts))
    many = {}
    for number in range(DOMAINS):
        file = folder / f"d{number:03d}.jsonl"
        file.write_text("".join(json.dumps({"text": texts[at]}) + "\n" for at in order[number::DOMAINS]))
        many[file.stem] = str(file)
    return many, str(folder)


def _share(name: str, share: float) -> Row:
    return Row("mixture", name, 100 * share, None, None, "%", peak_bytes(), machine())
