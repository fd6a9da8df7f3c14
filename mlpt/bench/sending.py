"""What it costs to send a teacher of ten million parameters to a worker, as a share of the steps between two updates.

The way of a part of the policy: packed by the learner, copied once by serialisation (what reads it from the object
store shares its memory), unpacked, copied and taken over by the objective. The step: the teacher writes a hard sample,
and a student of the same width trains on it.
"""

import copy
import time

import torch

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.meta.rules.teacher import WEIGHTS
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.writers import flat_weights
from mlpt.objectives import make_objectives
from mlpt.objectives.teacher_made import TeacherMade
from mlpt.storage.state import Flat

INTERVAL, ROWS, LENGTH = 20, 32, 64
VOCABULARY = Vocabulary(size=8192, pad=0, mask=1, sep=2, cls=3, unk=4)
SIZES = {"hidden_size": 320, "layers": 2, "heads": 4, "intermediate_size": 1280}


def run() -> list[Row]:
    """One row: the share, in processor time of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        objectives = make_objectives({"teacher_made": {"network": {**SIZES, "positions": LENGTH}}}, VOCABULARY)
        made = objectives["teacher_made"]
        assert isinstance(made, TeacherMade)
        model = build_encoder(ModelConfig(architecture="bert", **SIZES), VOCABULARY, objectives, LENGTH, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        weights = flat_weights(made.writer.network)
        generator = torch.Generator().manual_seed(0)
        batch = Batch.of(torch.randint(5, VOCABULARY.size, (ROWS, LENGTH), generator=generator)).for_arm("teacher_made")

        def send() -> None:
            packed = Flat.pack({WEIGHTS: weights})
            made.obey(copy.deepcopy(packed).unpack()[WEIGHTS].clone())

        def step() -> None:
            optimizer.zero_grad()
            model("teacher_made", made.corrupt(batch, generator)).backward()
            optimizer.step()

        sending, stepping = seconds_interleaved(send, step, rounds=7, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    name = f"sending a teacher of {weights.numel() / 1e6:.1f}M parameters every {INTERVAL} steps"
    share = 100 * sending / (INTERVAL * stepping)
    return [Row("teacher", name, share, None, None, "% of a step", peak_bytes(), machine())]
