"""Every block of an epoch is trained on exactly once, whatever the number of workers becomes on the way."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from waiting import wait_until

from mlpt.config import RunConfig
from mlpt.data.prepare import DataConfig, prepare
from mlpt.run.build import run_rank
from mlpt.settings import load_settings
from mlpt.storage.checkpoint import COMMITTED
from mlpt.training.group import Group
from mlpt.training.pretraining import Pretraining

BLOCKS, BATCH = 48, 8
EPOCH = BLOCKS // BATCH  # steps
CONFIG = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": ["mlm"],
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 2 * EPOCH, "batch_size": BATCH, "evaluate_batches": 1, "checkpoint_every": 3, "keep": 10},
    "report": {"tensorboard": False},
}
# (ranks, the step at which they are killed): they go on from the checkpoint before it, the last time at an epoch's end.
PHASES = [(1, 4), (2, 7), (1, None)]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> str:
    """One block a document, as many as are named."""
    folder = tmp_path_factory.mktemp("few")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for name, count in (("train", BLOCKS), ("dev", BATCH), ("test", BATCH)):
        texts = [" ".join(words[(n + k * (n % 7 + 1)) % 10] for k in range(12)) + f" {n}" for n in range(count)]
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} {text}" for text in texts))
    sources = [str(folder / f"{name}.txt") for name in ("train", "dev", "test")]
    config = DataConfig(source=sources, vocab_size=120, block_size=32, packing="document", workers=1)
    assert prepare(config, str(folder / "blocks")).splits["train"].rows == BLOCKS
    return str(folder / "blocks")


def rank_main(rank: int, world: int, phase: int, end: int | None, blocks: str, folder: str) -> None:
    """Train as one rank until killed, writing down which rows went through the model at which step."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    loss_of = Pretraining.loss_of
    with open(f"{folder}/rows-{phase}-{rank}.jsonl", "w", buffering=1) as file:

        def recorded(work, part, after):
            file.write(json.dumps([work._step, part.rows.tolist()]) + "\n")
            return loss_of(work, part, after)

        def must_save(step: int) -> bool:
            if step == end:
                wait_until((Path(folder) / f"run/checkpoints/step_{end // 3 * 3:08d}" / COMMITTED).is_file)
                os._exit(9)
            return False

        Pretraining.loss_of = recorded
        run_rank(
            load_settings(RunConfig, CONFIG), blocks, Path(folder) / "run", Group(rank, world), must_save=must_save
        )
    os._exit(0)


def trained(folder: Path) -> dict[int, list[int]]:
    """Rows by step, of the last time that the step was made: what the final weights have seen."""
    found: dict[int, list[int]] = {}
    for phase, (world, _) in enumerate(PHASES):
        seen: dict[int, list[int]] = {}
        for rank in range(world):
            for line in (folder / f"rows-{phase}-{rank}.jsonl").read_text().splitlines():
                step, rows = json.loads(line)
                seen.setdefault(step, []).extend(rows)
        found |= seen
    return found


def test_one_worker_then_two_then_one_train_on_every_block_once_an_epoch(blocks, tmp_path):
    (tmp_path / "run").mkdir()
    for phase, (world, end) in enumerate(PHASES):
        started = spawn(rank_main, (world, phase, end, blocks, str(tmp_path)), nprocs=world, join=False)
        for process in started.processes:
            process.join()
        codes = [process.exitcode for process in started.processes]
        assert codes == [0] if end is None else 0 not in codes  # one that sees the other one go may end by that
        (tmp_path / "store").unlink(missing_ok=True)
    again = [json.loads((tmp_path / f"rows-{phase}-0.jsonl").read_text().splitlines()[0])[0] for phase in (1, 2)]
    assert again == [3, EPOCH]  # from which each group went on, the last one exactly at the epoch's end
    rows = trained(tmp_path)
    assert sorted(rows) == list(range(2 * EPOCH))
    for epoch in range(2):
        seen = [row for step in range(epoch * EPOCH, (epoch + 1) * EPOCH) for row in rows[step]]
        assert sorted(seen) == list(range(BLOCKS))
