"""Masks: what a mask-training step costs against a plain one, and one-shot masks of a BERT-base-shaped model.

Steps are measured on one small encoder, in turn; peak memory of each kind of step in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.models.masked import add_pooler, maskable_weights
from mlpt.objectives import make_objectives
from mlpt.randomness import torch_generator
from mlpt.sparsity.artefacts import MaskFile, base_hash, save_masks
from mlpt.sparsity.compare import similarity
from mlpt.sparsity.config import MaskConfig, mask_encoder
from mlpt.sparsity.making import magnitude_masks, random_masks

VOCABULARY = Vocabulary(size=8192, pad=0, mask=4, cls=2, sep=3, unk=1)
BATCH, LENGTH = 32, 64
KINDS = ("plain", "mask_training", "tamt_kd")


def run() -> list[Row]:
    """All rows of the case."""
    return [*_steps(), *_one_shot()]


def step_of(kind: str) -> Callable[[], None]:
    """One optimiser step of BERT 4 x 256 on 32 x 64 tokens: `plain`, `mask_training` (MLM) or `tamt_kd`."""
    name = "distill" if kind == "tamt_kd" else "mlm"
    objectives = make_objectives({name: {}}, VOCABULARY)
    model: Encoder = build_encoder(ModelConfig(), VOCABULARY, objectives, LENGTH, seed=0)
    if kind != "plain":
        mask_encoder(MaskConfig(train=("scores",) if name == "distill" else ("scores", "heads")), model, None, seed=0)
    objectives[name].prepare(model)
    if torch.cuda.is_available():
        model.cuda()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    tokens = torch.randint(5, VOCABULARY.size, (BATCH, LENGTH), generator=torch_generator(0, "bench"))
    inputs = (
        objectives[name]
        .corrupt(Batch.of(tokens), torch_generator(0, "bench noise"))
        .to(next(model.parameters()).device)
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(name, inputs).backward()
        optimizer.step()

    return step


def _steps() -> list[Row]:
    seconds = dict(zip(KINDS, seconds_interleaved(*(step_of(kind) for kind in KINDS), rounds=7, warmup=1), strict=True))
    peaks = {kind: _peak_of(kind) for kind in KINDS}
    rows = []
    for kind, limit in (("mask_training", 1.15), ("tamt_kd", 1.9)):
        cost = seconds[kind] / seconds["plain"]
        name = f"{kind} step, seconds; costs {cost:.2f} plain steps (<= {limit})"
        rows.append(Row("masks", name, seconds[kind], seconds["plain"], 1 / cost, "s", peaks[kind], machine()))
        memory = peaks[kind] / peaks["plain"]
        name = f"{kind} step, peak memory; {memory:.2f} of a plain step's" + (" (<= 1.3)" if limit < 1.5 else "")
        rows.append(Row("masks", name, peaks[kind], peaks["plain"], 1 / memory, "bytes", peaks[kind], machine()))
    return rows


def _peak_of(kind: str) -> int:
    """Peak bytes of some steps in a fresh process, whose own imports are the same for every kind."""
    script = "import sys; from mlpt.bench.masks import print_peak; print_peak(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def print_peak(kind: str) -> None:
    """Take some steps and print the growth of peak memory since the imports, as JSON."""
    before = _own_peak()
    step = step_of(kind)
    for _ in range(4):
        step()
    print(json.dumps({"peak_bytes": _own_peak() - before}))


def _own_peak() -> int:
    """Peak bytes of this program. Linux's getrusage counts what the process was before it became this program."""
    status = Path("/proc/self/status")
    if torch.cuda.is_available() or not status.exists():
        return peak_bytes()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _one_shot() -> list[Row]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig())
    add_pooler(model)
    weights = maskable_weights(model)
    total = sum(weight.numel() for weight in weights.values())
    magnitude, seconds = _timed(lambda: magnitude_masks(weights, 0.7))
    rows = [_row(f"one-shot magnitude masks of {total:,} weights (<= 10 s)", seconds, 10.0, "s")]
    _, seconds = _timed(lambda: magnitude_masks(weights, 0.7, "global"))
    rows.append(_row("the same over the whole model (<= 10 s)", seconds, 10.0, "s"))
    drawn, seconds = _timed(lambda: random_masks(weights, 0.7, seed=0))
    rows.append(_row("random masks (<= 10 s)", seconds, 10.0, "s"))
    _, seconds = _timed(lambda: similarity(magnitude, drawn))
    rows.append(_row("comparing two such masks (<= 3 s)", seconds, 3.0, "s"))
    with tempfile.TemporaryDirectory() as folder:
        file = MaskFile.of(magnitude, "magnitude", base_hash=base_hash(model, list(weights)))
        size = save_masks(file, Path(folder)).stat().st_size
    rows.append(_row("masks.safetensors (<= 15 MB)", size, 15e6, "bytes"))
    return rows


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _row(name: str, ours: float, limit: float, unit: str) -> Row:
    """`peer` is the stated limit: ratio > 1 keeps it."""
    return Row("masks", name, ours, limit, limit / ours, unit, peak_bytes(), machine())
