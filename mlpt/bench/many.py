"""Ten students of the two-moons study trained at once, against one after another, in micro-batches a second.

The peer is a plain PyTorch loop: autograd, clipping and torch's fused AdamW, the same network and loss. Both predict at
the positions that have a label alone. One thread each: a study's cells would share the cores anyway.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.vocabulary import Vocabulary
from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import NetworkConfig, Student, build_student
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted
from mlpt.training.compiling import why_not_compile
from mlpt.training.many import Forward, Many, Mode

CELLS, STEPS = 10, 10
VOCABULARY = Vocabulary(size=407, pad=0, mask=1, sep=2, cls=3, unk=1, extra=tuple(range(4, 33)))
SIZES = NetworkConfig(hidden_size=8, heads=2, intermediate_size=32, layers=2, positions=34, attention="eager")
POINT, TEXT, MASKED = 4, 34, 6  # tokens of a point and of a pretraining text, and how many of these are masked at most
ADAMW = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
PEAK, MAX_NORM = 1e-3, 5.0

Batch = tuple[Tensor, ...]  # of all cells: (cells, ...)


def run() -> list[Row]:
    """Finetuning with equal and with different batch sizes, and masked language modelling."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            _rows("finetuning, 10 cells, batches of 1", points_loss, points([1] * CELLS)),
            _rows("finetuning, 10 cells, batches of 1 to 16", points_loss, points([1, 2, 4, 8, 16] * 2)),
            _rows("masked language modelling, 10 cells, batches of 4", masked_loss, texts(4)),
        ]
        return [row for group in rows for row in group]
    finally:
        torch.set_num_threads(threads)


def points(sizes: list[int]) -> list[Batch]:
    """STEPS micro-batches of labelled points: cells with fewer rows than the largest have rows of padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (CELLS, max(sizes), POINT)
    there = torch.arange(shape[1]) < torch.tensor(sizes).unsqueeze(1)  # (cells, rows)
    made: list[Batch] = []
    for _ in range(STEPS):
        tokens = torch.randint(33, VOCABULARY.size, shape, generator=generator) * there.unsqueeze(-1)
        labels = torch.randint(0, 2, shape[:2], generator=generator).mul(3).add(2).unsqueeze(-1).expand(shape)
        made.append((tokens, torch.where(tokens == 0, 0, labels)))
    return made


def texts(rows: int) -> list[Batch]:
    """STEPS micro-batches of masked texts, and the positions to predict with their labels (padded with 0)."""
    generator = torch.Generator().manual_seed(0)
    made: list[Batch] = []
    for _ in range(STEPS):
        tokens = torch.randint(33, VOCABULARY.size, (CELLS * rows, TEXT), generator=generator)
        inputs, labels = mask_counted(tokens, VOCABULARY, generator, CountedMaskingConfig(), first=4)
        asked = labels.ne(0).long().topk(MASKED, dim=1).indices  # labelled positions first
        parts = (inputs, asked, labels.gather(1, asked))
        made.append(tuple(one.view(CELLS, rows, -1) for one in parts))
    return made


def points_loss(forward: Forward, tokens: Tensor, labels: Tensor) -> Tensor:
    """Of labelled points: the label's token at every position."""
    return token_cross_entropy(forward(tokens, tokens != 0), labels, labels != 0)


def masked_loss(forward: Forward, tokens: Tensor, at: Tensor, labels: Tensor) -> Tensor:
    """Of masked texts, which have no padding."""
    return token_cross_entropy(forward(tokens, at=at), labels, labels != 0)


def together(loss: Callable[..., Tensor], batches: list[Batch], mode: Mode) -> Callable[[], object]:
    """A function that trains all cells for STEPS steps at once."""
    many = Many(_students(), loss, max_norm=MAX_NORM, mode=mode, **ADAMW)  # type: ignore[arg-type]
    rates = torch.full((CELLS,), PEAK)

    def steps() -> None:
        for step, batch in enumerate(batches):
            many.step(batch, rates, seed=step)

    return steps


def one_after_another(loss: Callable[..., Tensor], batches: list[Batch]) -> Callable[[], object]:
    """A function that trains each cell for STEPS steps, on its own rows alone."""
    models = _students()
    optimizers = [torch.optim.AdamW(one.parameters(), lr=PEAK, fused=True, **ADAMW) for one in models]  # type: ignore
    own = [[_without_padding(batch, cell) for batch in batches] for cell in range(CELLS)]

    def steps() -> None:
        for model, optimizer, mine in zip(models, optimizers, own, strict=True):
            for batch in mine:
                optimizer.zero_grad()
                loss(model, *batch).backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()

    return steps


def _students() -> list[Student]:
    return [build_student(SIZES, VOCABULARY, seed) for seed in range(CELLS)]


def _without_padding(batch: Batch, cell: int) -> Batch:
    rows = batch[0][cell].ne(0).any(dim=1)
    return tuple(one[cell][rows] for one in batch)


def _rows(name: str, loss: Callable[..., Tensor], batches: list[Batch]) -> list[Row]:
    """The step as it is recorded, and compiled where a compiler is."""
    modes: list[Mode] = ["recorded"] if why_not_compile(torch.device("cpu")) else ["recorded", "compiled"]
    runs = [together(loss, batches, mode) for mode in modes]
    *ours, peer = seconds_interleaved(*runs, one_after_another(loss, batches), rounds=7, warmup=2)
    done = CELLS * STEPS
    return [
        Row(
            "teacher",
            f"{name}, {mode}",
            done / own,
            done / peer,
            peer / own,
            "micro-batches/s",
            peak_bytes(),
            machine(),
        )
        for mode, own in zip(modes, ours, strict=True)
    ]
