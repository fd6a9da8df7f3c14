"""The settings of a masked run, and how they turn an encoder into a masked one with its step hooks."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from mlpt.errors import UserError
from mlpt.models.masked import (
    add_pooler,
    attach_scores,
    current_masks,
    maskable_weights,
    scores_of,
    set_trainable,
)
from mlpt.settings import Settings
from mlpt.sparsity.artefacts import MaskFile, base_hash, fit, load_masks, save_masks
from mlpt.sparsity.hooks import IterativePruning, MaskKeeper, MaskSaver, ThresholdReset
from mlpt.sparsity.making import Ties, density, largest, magnitude_masks
from mlpt.sparsity.schedule import IterativeConfig, ResetConfig
from mlpt.sparsity.scores import Init, initial_scores, scores_of_mask
from mlpt.sparsity.structured import importance, kind_of

Trainable = Literal["scores", "weights", "heads"]


class MaskConfig(Settings):
    """A masked encoder: which weights, how the masks start, and what trains.

    method      written into `sparsity.json`; for people.
    sparsity    fraction pruned of every masked matrix (of all heads or neurons together, with `structured`).
    modules     `tamt` (encoder layers, word embeddings, pooler), `encoder` (layers alone), or a regular expression over
                module names.
    structured  `heads`, `neurons` or `both`: mask those instead of single weights.
    pooler      add the pooler that TAMT masks where the model has none; its mask never trains.
    decoder     the language-modelling decoder tied to masked embeddings: `dense` (as published) or `masked` alike.
    init        of the scores: `magnitude`, `random`, `magnitude_and_random`, `double_uniform`, `free`, or `file`.
    file        the mask file of `init: file`; it may also hold another step's masks of the same base model.
    scope       of `init: magnitude`: `local` (each matrix, as published) or `global`.
    train       what gradients reach: TAMT trains `scores` and `heads`; IMP, and masks that are only applied, `weights`
                and `heads`; plain joint training all three.
    ties        `exact`: every reset and save has exactly the target; `published`: tied scores fall together.
    reset       when thresholds go back to the exact sparsity; those of heads and neurons at every step, as published.
    iterative   iterative magnitude pruning instead of trained scores; `sparsity` and `init` then play no part.
    """

    method: str = "trained"
    sparsity: float = Field(0.7, ge=0, lt=1)
    modules: str = "tamt"
    structured: Literal["none", "heads", "neurons", "both"] = "none"
    pooler: bool = True
    decoder: Literal["dense", "masked"] = "dense"
    init: Init | Literal["file"] = "magnitude"
    file: str | None = None
    scope: Literal["local", "global"] = "local"
    train: tuple[Trainable, ...] = ("scores", "heads")
    ties: Ties = "exact"
    reset: ResetConfig = ResetConfig()
    iterative: IterativeConfig | None = None

    @field_validator("train")
    @classmethod
    def _something(cls, train: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        if not train:
            raise ValueError("name at least one of scores, weights, heads")
        return train

    def model_post_init(self, context: Any) -> None:
        if (self.init == "file") != (self.file is not None):
            raise ValueError("init: file and file: PATH go together")
        if self.iterative is not None and "scores" in self.train:
            raise ValueError("iterative pruning trains weights, not scores: set train: [weights, heads]")
        if self.iterative is not None and self.structured != "none":
            raise ValueError("iterative pruning is unstructured; leave structured at none")
        if self.init != "magnitude" and self.structured != "none":
            raise ValueError("the masks of heads and neurons start from norms; leave init at magnitude")

    @property
    def kinds(self) -> list[Literal["heads", "neurons"]]:
        """The structured kinds that are masked."""
        chosen = {"none": [], "both": ["heads", "neurons"]}.get(self.structured, [self.structured])
        return chosen  # type: ignore[return-value]


def mask_encoder(config: MaskConfig, model: Any, pretrained: str | None, seed: int) -> None:
    """Mask `model` (an `Encoder` with its starting weights) in place, and freeze what does not train.

    pretrained  the folder or hub name the model came from, which may hold a pooler that its stock class left out.
    """
    if config.structured == "none" and config.pooler and config.modules == "tamt":
        add_pooler(model, pretrained_pooler(pretrained) if pretrained else None)
    attach_scores(model, starting_scores(config, model, seed), decoder=config.decoder)
    parts = set(config.train)
    set_trainable(model, weights="weights" in parts, scores="scores" in parts, heads="heads" in parts)


def starting_scores(config: MaskConfig, model: Any, seed: int) -> dict[str, Tensor]:
    """Scores by weight name for a dense `model`."""
    if config.structured != "none":
        cuts = [largest(importance(model, kind), config.sparsity, "global") for kind in config.kinds]
        return {name: scores_of_mask(mask) for cut in cuts for name, mask in cut.items()}
    weights = maskable_weights(model, config.modules)
    if config.iterative is not None:
        return initial_scores(weights, 0.0)
    if config.init == "file":
        masks = fit(load_masks(str(config.file)), model)
        missing = weights.keys() - masks.keys()
        if missing:
            raise UserError(f"{config.file} has no mask of '{min(missing)}'; set masks.modules to what it holds")
        return {name: scores_of_mask(masks[name]) for name in weights}
    if config.init == "magnitude" and config.scope == "global":
        masks = magnitude_masks(weights, config.sparsity, "global", ties=config.ties)
        return {name: scores_of_mask(mask) for name, mask in masks.items()}
    return initial_scores(weights, config.sparsity, config.init, seed, config.ties)


def mask_hooks(
    config: MaskConfig, model: Any, seed: int, out: Path | None, base: str | None, steps_per_epoch: int | None = None
) -> list[Any]:
    """The step hooks of a masked `model`, made before any checkpoint is loaded into it.

    out   the folder for masks (rank 0); None on the other ranks.
    base  name of the base model for `sparsity.json`.
    """
    moves = "weights" in config.train and config.iterative is None
    save = MaskSaver(model, out, config.method, base_moves=moves, seed=seed, sparsity=config.sparsity, base=base)
    if config.iterative is not None:
        return [IterativePruning(config.iterative, model, save)]
    if "scores" not in config.train:
        return [MaskKeeper(save)]
    reset = config.reset if config.structured == "none" else ResetConfig(interval=1)
    return [ThresholdReset(reset, pruned_counts(config, model), config.ties, steps_per_epoch, save)]


def save_final_masks(config: MaskConfig, model: Any, folder: Path, step: int, seed: int) -> None:
    """Write the masks in force beside the final dense model, whose hash they carry; call it before saving the model."""
    masks = current_masks(model)
    sparsity = 1 - density(masks) if config.iterative is not None else config.sparsity
    known = {"sparsity": sparsity, "seed": seed, "step": step, "base_hash": base_hash(model, list(masks))}
    save_masks(MaskFile.of(masks, config.method, **known), folder, model)


def masks_in_force(config: MaskConfig, model: Any) -> dict[str, Any]:
    """For the summary of a run: method, target sparsity, and the fraction of weights (or heads, neurons) kept."""
    masks = current_masks(model)
    kept = {f"the weights of {len(masks)} matrices": density(masks)}
    if config.structured != "none":
        kept = {kind: density({n: m for n, m in masks.items() if kind_of(n) == kind}) for kind in config.kinds}
    target = config.iterative.levels[-1] if config.iterative is not None else config.sparsity
    return {"method": config.method, "sparsity": target, "kept": kept}


def pruned_counts(config: MaskConfig, model: Any) -> float | dict[str, int]:
    """The target of resets: the sparsity, or each matrix's own count where a file or a global cut gave it."""
    if config.structured != "none" or (config.init != "file" and config.scope == "local"):
        return config.sparsity
    return {name: int((scores <= 0).sum()) for name, scores in scores_of(model).items()}


def pretrained_pooler(name: str) -> dict[str, Tensor] | None:
    """`weight` and `bias` under `dense.` of the pooler in a folder or hub model; None when it holds none."""
    try:
        found = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    with safe_open(found, framework="pt") as stored:
        names = [name for name in list(stored.keys()) if "pooler.dense." in name]
        keys = {name[name.index("dense.") :]: name for name in names}
        return {name: stored.get_tensor(key) for name, key in keys.items()} or None
