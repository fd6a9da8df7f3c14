"""What each change to the training step buys, against the same step without it.

A buffer of fixed size for the predicted positions, in the step as it is and in the compiled one, which makes a graph
that serves any number of positions where there is none; and an output layer of a multiple of 64 logits.
"""

import tempfile
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mlpt.bench import step
from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.models.padded_decoder import PaddedDecoder
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Objective
from mlpt.objectives.capacity import most_chosen
from mlpt.training.compiling import why_not_compile
from mlpt.training.group import default_device

ROWS = 30522  # of an output layer: BERT's vocabulary


def run() -> list[Row]:
    """Steps a second with each change against those without, in turn; `ratio` > 1: the change pays."""
    device = default_device()
    tokens = step.make_tokens(step.BATCH * (step.STEPS + 1))
    objectives = make_objectives({"mlm": {}}, step.vocabulary())
    rows = [_buffer_row("a buffer of fixed size for predicted positions", tokens, objectives, compile=False)]
    if why_not_compile(device) is None:
        name = "the same, both compiled (torch.compile), against dynamic shapes"
        rows.append(_buffer_row(name, tokens, objectives, compile=True))
    return [*rows, _padding_row(device)]


def _buffer_row(name: str, tokens: torch.Tensor, objectives: Mapping[str, Objective], compile: bool) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        trainings = [
            step.OurTraining(
                step.make_encoder(objectives), tokens, "float32", folder, compile=compile, fixed_shapes=fixed
            )
            for fixed in (True, False)
        ]
        fixed, plain = seconds_interleaved(*(one.seconds for one in trainings), rounds=step.ROUNDS)
    return _row(name, fixed, plain)


def _padding_row(device: torch.device) -> Row:
    chosen = most_chosen(step.BATCH * step.LENGTH, 0.15)
    hidden = torch.randn(chosen, step.HIDDEN, device=device, requires_grad=True)
    targets = torch.randint(ROWS, (chosen,), device=device)
    plain = nn.Linear(step.HIDDEN, ROWS, device=device)
    padded = nn.Linear(step.HIDDEN, ROWS, device=device)
    padded.__class__ = PaddedDecoder

    def pass_through(layer: nn.Linear) -> Callable[[], None]:
        def both() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = layer(hidden)
            cross_entropy(logits.float(), targets).backward()

        return both

    ours, theirs = seconds_interleaved(pass_through(padded), pass_through(plain), rounds=step.ROUNDS)
    return _row(f"an output layer of {ROWS:,} logits padded to a multiple of 64, both passes", ours, theirs)


def _row(name: str, ours: float, without: float) -> Row:
    return Row("step", name, 1 / ours, 1 / without, without / ours, "1/s", peak_bytes(), machine())
