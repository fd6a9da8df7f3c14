"""`mlpt evaluate` and `mlpt.evaluate`: losses of a model on prepared text, or what models know by suites."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mlpt.api.speaking import console_of, speaker
from mlpt.downstream.suites import build_suites, choose_suites, measure
from mlpt.errors import UserError
from mlpt.reporting.steps import Steps
from mlpt.run.result import Run
from mlpt.run.saved import blocks_of_run, resolve_model
from mlpt.settings import nested
from mlpt.sparsity.commands import evaluate_files

Place = str | os.PathLike[str]


def evaluate(
    model: Run | Place | Sequence[Run | Place],
    *,
    suite: str | Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    blocks: Place | None = None,
    masks: Place | None = None,
    dense: bool = False,
    split: Literal["train", "dev", "test"] = "test",
    batches: int | None = 16,
    batch_size: int = 32,
    seed: int = 42,
    padding: Literal["out", "in"] = "out",
    token_types: Literal["zero", "pair"] = "zero",
    quiet: bool = False,
) -> dict[str, Any]:
    """Pretraining losses of a model, dense or masked; with `suite` what one or several models know.

    model     a `Run`, its folder (or RUN@best, RUN@step=500), a folder or a hub name; several only with `suite`.
    suite     NAME or NAME=DATA, as in docs/EVALUATION.md. settings: of suites, such as `{"blimp.masking": "plain"}`.
    blocks    prepared text; None: that of the run. batches: how many; None: every block of the `split`, in order.
    masks     a mask file; None: those beside the weights, unless `dense`.

    Returns plain JSON values: losses in nats (`mlm_loss`, `perplexity`, `density`, ...), or the results of each suite
    by its name. Raises `UserError` for bad input.
    """
    models = [model] if isinstance(model, Run | str | os.PathLike) else list(model)
    names = [one.name if isinstance(one, Run) else os.fspath(one) for one in models]
    say, file = speaker(quiet), None if masks is None else os.fspath(masks)
    suites = [suite] if isinstance(suite, str) else list(suite)
    if suites:
        folders = folders_of(names, say)
        built = build_suites(choose_suites(suites), nested(settings or {}))
        with Steps(console_of(quiet)) as steps:
            return list(measure(folders, built, steps.show, file, dense))[-1]
    if len(names) != 1 or settings:
        raise UserError("several models and --set belong to --suite; give one model for its losses")
    return losses(
        names[0],
        None if blocks is None else os.fspath(blocks),
        file,
        say,
        split=split,
        batches=batches,
        batch_size=batch_size,
        seed=seed,
        padding=padding,
        token_types=token_types,
        dense=dense,
    )


def losses(model: str, blocks: str | None, masks: str | None, say: Callable[[str], None], **how: Any) -> dict[str, Any]:
    """`evaluate_files` of what the name `model` means, on the run's own text where no `blocks` are named."""
    where = blocks or blocks_of_run(model)
    return evaluate_files(resolve_model(model, say), where, masks, **how)


def folders_of(models: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """The folder of the model that each name means."""
    if len(set(models)) < len(models):
        raise UserError("a model is named twice; name each once")
    return {model: resolve_model(model, say) for model in models}
