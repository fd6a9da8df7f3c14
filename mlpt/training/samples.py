"""Texts for people to look at, kept at some moments of a run: what objectives make of them, and how hard tokens are.

The same few texts every time, with the same noise: what changes is the teacher, the guide and the model. Nothing here
touches training: all noise has addresses of its own. `mlpt.reporting.samples` reads it.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpt.data.batch import Arm, Batch, Split
from mlpt.data.sources import Sources
from mlpt.errors import reason
from mlpt.models.hooks import NoHook
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.prediction import predicted_logits
from mlpt.outputs import write_file
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.reporting.samples import FOLDER

ROWS, LENGTH = 3, 64  # texts of each kind, and how many of their tokens are kept
_MOST = 6  # objectives that are shown
_TURNS = 7  # passes in which every token is masked once: a seventh of them, as masked modelling has it, at a time
_log = logging.getLogger(__name__)


class Samples(NoHook):
    """Writes a file at each of about `times` steps, spread evenly from the first to the last; on rank 0 alone."""

    name = "samples"

    def __init__(
        self, folder: Path, sources: Sources, arms: Iterable[Arm], steps: int, times: int, seed: int, device: Any
    ):
        """arms: those of the run; the first one of each objective is shown. steps: of the whole run."""
        self._folder, self._sources, self._seed, self._device = folder, sources, seed, device
        self._arms = {arm.objective: arm for arm in reversed(list(arms))}
        self._moments = set(np.linspace(0, steps, times).round().astype(int).tolist()) if times > 1 else {steps}
        self._steps = steps
        self._pieces: _Pieces | None = None

    def before_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step in self._moments:
            self._keep(step, model)

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == self._steps:
            self._keep(step, model)

    def alters(self, parameter: str) -> bool:
        return False

    @torch.no_grad()
    def _keep(self, step: int, model: Any) -> None:
        was_training = model.training
        model.eval()
        found = {name: one for name in model.objectives if (one := self._made(name, model)) is not None}
        hard = self._hardness(next(iter(found)), model) if found else []
        model.train(was_training)
        if not found:
            return
        try:
            folder = self._folder / FOLDER
            folder.mkdir(exist_ok=True)
            shown = {name: found[name] for name in list(found)[:_MOST]}
            said = {"step": step, "objectives": shown, "hardness": hard}
            write_file(folder / f"step_{step:08d}.json", json.dumps(said, ensure_ascii=False).encode())
        except OSError as error:  # no reason for a run to end
            _log.warning("no sample texts of step %d were kept: %s", step, reason(error))

    def _made(self, name: str, model: Any) -> dict[str, Any] | None:
        """What an objective makes of its texts; None for one that makes nothing that can be shown."""
        if name not in self._arms:
            return None
        objective, arm = model.objectives[name], self._arms[name]
        batch = self._texts(arm, objective.shown_split)
        inputs = objective.example(batch, torch_generator(self._seed, f"samples/{name}"))
        if inputs is None:
            return None
        losses = _losses(model, inputs.to(self._device))  # (batch, length), NaN where nothing is predicted
        hard = objective.hard_tokens(batch)
        rows = []
        for at, text in enumerate(batch.tokens):
            row = self._row(text, inputs.input_ids[at], inputs.labels()[at].cpu(), losses[at])
            if hard is not None:
                row["hard"] = [int(one) for one in hard[at][: len(row["text"])]]
            rows.append(row)
        return {"kind": objective.shown_as, "split": batch.split, "rows": rows}

    def _row(self, text: Tensor, made: Tensor, wanted: Tensor, losses: Tensor) -> dict[str, Any]:
        size = min(LENGTH, int((text != self._sources.vocabulary.pad).sum()))
        mask = self._sources.vocabulary.mask
        spell = self._spelling()
        text, made, wanted, losses = text[:size], made[:size].cpu(), wanted[:size], losses[:size]
        asked = zip(wanted, spell(wanted.clamp(min=0)), strict=True)
        return {
            "text": spell(text),
            "kinds": "".join("=" if a == b else "m" if b == mask else "r" for a, b in zip(text, made, strict=True)),
            "made": spell(made),
            "wanted": [None if one < 0 else piece for one, piece in asked],
            "losses": _rounded(losses),
        }

    def _hardness(self, objective: str, model: Any) -> list[dict[str, Any]]:
        """Held-out texts, every token masked once: the model's loss at each, in nats."""
        vocabulary, spell = self._sources.vocabulary, self._spelling()
        texts = self._texts(self._arms[objective], "dev")
        tokens = texts.tokens[:, :LENGTH]
        length = tokens.shape[1]
        turns = torch.arange(length) % _TURNS == torch.arange(_TURNS)[:, None]  # (turns, length)
        chosen = turns[:, None] & ~vocabulary.is_special(tokens)[None]  # (turns, batch, length)
        every = tokens.expand(_TURNS, -1, -1)
        positions = chosen.view(-1).nonzero().squeeze(1)
        inputs = Inputs(
            every.masked_fill(chosen, vocabulary.mask).reshape(-1, length),
            attention_mask_of(every.reshape(-1, length), vocabulary.pad),
            positions,
            every.reshape(-1)[positions],
            documents=None if texts.documents is None else texts.documents[:, :LENGTH].repeat(_TURNS, 1),
        )
        losses = _losses(model, inputs.to(self._device)).view(_TURNS, -1, length)
        losses = losses.nan_to_num(0.0).sum(0).masked_fill(~chosen.any(0), torch.nan)
        sizes = (tokens != vocabulary.pad).sum(1).tolist()
        rows = zip(tokens, losses, sizes, strict=True)
        return [{"text": spell(text[:size]), "losses": _rounded(loss[:size])} for text, loss, size in rows]

    def _texts(self, arm: Arm, split: Split) -> Batch:
        rows = self._sources[arm.source].split(split)
        order = numpy_generator(self._seed, "samples/rows").permutation(len(rows))
        return rows.batch(np.sort(order[:ROWS])).for_arm(arm.name)

    def _spelling(self) -> "_Pieces":
        if self._pieces is None:
            self._pieces = _Pieces(self._sources.train.tokenizer())
        return self._pieces


class _Pieces:
    """Tokens as people read them; a space before a piece says that a word begins."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        # WordPiece marks what goes on with a word; other kinds have the space before a word in its first piece.
        self._has_words = any(piece.startswith("##") for piece in tokenizer.get_vocab())
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, ids: Tensor) -> list[str]:
        return [self._spelled(int(one)) for one in ids]

    def _spelled(self, token: int) -> str:
        if token in self._special:
            return f" {self._tokenizer.convert_ids_to_tokens(token)}"
        if self._has_words:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            return piece[2:] if piece.startswith("##") else f" {piece}"
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _losses(model: Any, inputs: Inputs) -> Tensor:
    """(batch, length) float32 on the CPU: nats at each predicted position, NaN elsewhere."""
    logits, targets = predicted_logits(model, inputs)
    found = torch.full((inputs.input_ids.numel(),), torch.nan)
    if inputs.positions is not None:
        found[inputs.positions.cpu()] = F.cross_entropy(logits, targets, reduction="none").cpu()
    return found.view(inputs.input_ids.shape)


def _rounded(losses: Tensor) -> list[float | None]:
    """Nats to two places; None where there is none, or no finite one."""
    return [round(one, 2) if np.isfinite(one) else None for one in losses.tolist()]
