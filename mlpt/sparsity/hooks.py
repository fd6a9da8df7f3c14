"""Step hooks of sparsity (`mlpt.models.hooks.StepHook`): threshold resets of mask training, iterative pruning,
zeros that stay in fine-tuning.

They keep the loop unaware of masks. Masks are written to `out` (rank 0 gives a folder, other ranks None).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlpt.models.hooks import NoHook
from mlpt.models.masked import THETA, backbone_of, current_masks, masked_modules
from mlpt.sparsity.artefacts import MaskFile, base_hash, save_masks
from mlpt.sparsity.making import Ties
from mlpt.sparsity.schedule import IterativeConfig, ResetConfig, fraction_of_remaining, prune_further
from mlpt.sparsity.scores import reset_thresholds, scores_of_mask


class MaskSaver:
    """Writes `OUT/<label>/masks.safetensors` with what is known of the run; does nothing without a folder.

    The masks belong to the weights that `model` has now, as iterative pruning's and TAMT's do, or, with `base_moves`,
    to those it has when they are saved (weights that train along with their masks).
    """

    def __init__(self, model: nn.Module, out: Path | None, method: str, base_moves: bool = False, **known: Any):
        self._out, self._method, self._known, self._base_moves = out, method, known, base_moves
        self._base_hash = _hash(model) if out is not None and not base_moves else None

    def __call__(self, label: str, model: nn.Module, step: int, **known: Any) -> None:
        if self._out is not None:
            belongs_to = _hash(model) if self._base_moves else self._base_hash
            known = self._known | {"step": step, "base_hash": belongs_to} | known
            save_masks(MaskFile.of(current_masks(model), self._method, **known), self._out / label, model)


def _hash(model: nn.Module) -> str:
    return base_hash(model, list(masked_modules(model)))


class _MaskHook(NoHook):
    """Of frozen parameters, hooks of masks change scores alone: they raise ties, and zero those of pruned weights."""

    def alters(self, parameter: str) -> bool:
        return parameter.endswith("scores")


class ThresholdReset(_MaskHook):
    """TAMT's mask training: thresholds go back to the exact sparsity when `config` says.

    What is measured and saved has it at any time, and training goes on as if nothing had been measured or saved.

    sparsity         one for all matrices, or pruned counts by weight name.
    steps_per_epoch  for the cadence that also resets at an epoch's end.
    """

    name = "threshold_reset"

    def __init__(
        self,
        config: ResetConfig,
        sparsity: float | Mapping[str, int],
        ties: Ties = "exact",
        steps_per_epoch: int | None = None,
        save: Callable[..., None] | None = None,
    ):
        self.config, self.sparsity, self.ties, self.steps_per_epoch = config, sparsity, ties, steps_per_epoch
        self._save = save

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.config.due(step, self.steps_per_epoch):
            reset_thresholds(model, self.sparsity, self.ties)

    @contextmanager
    def as_saved(self, model: nn.Module) -> Iterator[None]:
        with _put_back(model):
            reset_thresholds(model, self.sparsity, self.ties)
            yield

    def save(self, step: int, model: nn.Module) -> None:
        if self._save is not None:
            self._save(f"step_{step}", model, step)


class MaskKeeper(NoHook):
    """Writes the masks at every save, where something other than this process's gradients sets the scores."""

    name = "mask_keeper"

    def __init__(self, save: Callable[..., None]):
        self._save = save

    def alters(self, parameter: str) -> bool:
        return False

    def save(self, step: int, model: nn.Module) -> None:
        self._save(f"step_{step}", model, step)


class PrunedStayZero(NoHook):
    """Fine-tuning's: `masks`, by parameter name (True: kept), hold after every update, whatever optimiser makes it.

    Without gradients AdamW leaves a zero where it is; Muon's update of a matrix has no zeros.
    """

    name = "pruned_stay_zero"

    def __init__(self, masks: Mapping[str, Tensor]):
        self._masks = masks

    @torch.no_grad()
    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for name, mask in self._masks.items():
            model.get_parameter(name).mul_(mask)

    def alters(self, parameter: str) -> bool:
        return parameter in self._masks


class IterativePruning(_MaskHook):
    """Iterative magnitude pruning: the first level before any update, one more after every `interval` updates.

    Starts from `model` (masked, with its starting weights): whoever resumes a run builds the hook before the weights of
    the checkpoint are loaded.
    """

    name = "iterative_pruning"

    def __init__(self, config: IterativeConfig, model: nn.Module, save: Callable[..., None] | None = None):
        self.config = config
        self._save = save
        self._levels_done = 0
        self._restarted_at = 0
        self._start = _body_weights(model) if config.rewind == "paper" else {}

    def before_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 0 and self._levels_done == 0:
            self._prune(0, step, model, optimizer)

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        level = self.config.level_at(step)
        if level is not None and level == self._levels_done:
            self._prune(level, step, model, optimizer)

    def schedule_step(self, step: int) -> int:
        return step - self._restarted_at

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        return {"levels_done": self._levels_done, "restarted_at": self._restarted_at}, {}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._levels_done, self._restarted_at = state["levels_done"], state["restarted_at"]

    @torch.no_grad()
    def _prune(self, level: int, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        before = self.config.levels[level - 1] if level else 0.0
        fraction = fraction_of_remaining(before, self.config.levels[level])
        for module in masked_modules(model).values():
            kept = module.scores > module.threshold if level else torch.ones_like(module.scores, dtype=torch.bool)
            module.scores.copy_(scores_of_mask(prune_further(module.weight, kept, fraction)))
            module.threshold.fill_(THETA)
        for name, parameter in backbone_of(model).named_parameters():
            if name in self._start:
                parameter.copy_(self._start[name])
        if self.config.restart_optimizer:
            optimizer.state.clear()
            self._restarted_at = step
        self._levels_done = level + 1
        if self._save is not None:
            self._save(f"{self.config.levels[level]:g}", model, step, sparsity=self.config.levels[level])


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Give the masked modules of `model` their scores and thresholds back after the block."""
    tensors = [tensor for one in masked_modules(model).values() for tensor in (one.scores, one.threshold)]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in kept:
                tensor.copy_(values)


def _body_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the encoder body's parameters without scores (the published keys that contain "bert"): heads stay."""
    backbone = backbone_of(model)
    body = {id(parameter) for parameter in getattr(backbone, "base_model", backbone).parameters()}
    return {
        name: parameter.detach().clone()
        for name, parameter in backbone.named_parameters()
        if id(parameter) in body and not name.endswith("scores")
    }
