"""`mlpt evaluate` and `mlpt.evaluate`: losses of a model on prepared text, what models know by suites, or the scores of
a fine-tuned model."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mlpt.api.speaking import console_of, speaker
from mlpt.downstream import command
from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.finetune import evaluate_saved
from mlpt.downstream.results import Scores
from mlpt.downstream.suites import build_suites, choose_suites, measure
from mlpt.errors import UserError
from mlpt.models.quiet import quiet
from mlpt.outputs import StrPath
from mlpt.reporting.steps import Steps
from mlpt.run.result import Run, name_of
from mlpt.run.saved import blocks_of_run, resolve_model
from mlpt.settings import merge, nested
from mlpt.sparsity.commands import evaluate_files


def evaluate(
    model: Run | StrPath | Sequence[Run | StrPath],
    *,
    suite: str | Sequence[str] = (),
    tasks: str | Sequence[str] = (),
    data_dir: StrPath | None = None,
    task_file: StrPath | Sequence[StrPath] = (),
    settings: Mapping[str, Any] | None = None,
    blocks: StrPath | None = None,
    masks: StrPath | None = None,
    dense: bool = False,
    split: Literal["train", "dev", "test"] = "test",
    batches: int | None = 16,
    batch_size: int = 32,
    seed: int = 42,
    padding: Literal["out", "in"] = "out",
    token_types: Literal["zero", "pair"] = "zero",
    quiet: bool = False,
) -> dict[str, Any]:
    """Pretraining losses of a model, dense or masked; with `suite` what one or several models know; with `tasks` how a
    fine-tuned model does on their dev rows.

    model     a `Run`, its folder (or RUN@best, RUN@step=500), a folder or a hub name; several only with `suite`.
    suite     NAME or NAME=DATA, as in docs/EVALUATION.md. settings: of suites, such as `{"blimp.masking": "plain"}`, or
              of fine-tuning, such as `{"max_length": 256}`.
    tasks     names, with data_dir and task_file as for `mlpt.finetune`.
    blocks    prepared text; None: that of the run. batches: how many; None: every block of the `split`, in order.
    masks     a mask file; None: those beside the weights, unless `dense`.

    Returns plain JSON values: losses in nats (`mlm_loss`, `perplexity`, `density`, ...), or the results of each suite
    by its name, or under `tasks` by task, split and metric, as fractions. Raises `UserError` for bad input.
    """
    models = [model] if isinstance(model, Run | str | os.PathLike) else list(model)
    names = [name_of(one) for one in models]
    say, file = speaker(quiet), None if masks is None else os.fspath(masks)
    suites = [suite] if isinstance(suite, str) else list(suite)
    files = [os.fspath(one) for one in ([task_file] if isinstance(task_file, str | os.PathLike) else task_file)]
    named = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    kind = kind_of(names, suites, [*named, *files], data_dir, blocks, settings)
    if kind == "suites":
        folders = folders_of(names, say)
        built = build_suites(choose_suites(suites), nested(settings or {}))
        with Steps(console_of(quiet)) as steps:
            return list(measure(folders, built, steps.show, file, dense))[-1]
    if kind == "tasks":
        folder = None if data_dir is None else os.fspath(data_dir)
        given = {"tasks": named, "masks": file, "dense": dense}
        return {"tasks": scores_of(names[0], given, folder, files, nested(settings or {}), say)}
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


def kind_of(
    models: Sequence[str], suites: Sequence[str], tasks: Sequence[str], data_dir: Any, blocks: Any, settings: Any
) -> Literal["suites", "tasks", "losses"]:
    """Which of the three evaluations is asked for. Raises `UserError` where what is given belongs to another one.

    tasks  names and files of tasks.
    """
    if suites and tasks:
        raise UserError("--suite and --tasks are two evaluations: ask for one of them")
    if blocks is not None and (suites or tasks):
        raise UserError("--blocks is the text of pretraining losses: leave it out, or --suite and --tasks")
    if data_dir is not None and not tasks:
        raise UserError("--data-dir holds the rows of --tasks: name the tasks (for a suite: --suite NAME=FOLDER)")
    if suites:
        return "suites"
    if len(models) != 1 or (settings and not tasks):
        raise UserError("several models belong to --suite, and --set to --suite or --tasks: give one model")
    return "tasks" if tasks else "losses"


def losses(model: str, blocks: str | None, masks: str | None, say: Callable[[str], None], **how: Any) -> dict[str, Any]:
    """`evaluate_files` of what the name `model` means, on the run's own text where no `blocks` are named."""
    where = blocks or blocks_of_run(model)
    return evaluate_files(resolve_model(model, say), where, masks, **how)


def scores_of(
    model: str,
    given: Mapping[str, Any],
    data_dir: str | None,
    task_files: Sequence[str],
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Scores]:
    """The scores of a fine-tuned model on the dev rows of each task.

    given  what options gave, `tasks` among it. settings: of fine-tuning, by key.
    Raises `UserError` for a model that has no head for a task.
    """
    own = command.tasks_of_files(task_files)
    named = [*(given.get("tasks") or ()), *own.get("tasks", ())]
    values = {**merge(own, {key: one for key, one in given.items() if one is not None}), "tasks": named}
    values |= {"model": resolve_model(model, say)}
    config = command.settings_from(FinetuneConfig, values, data_dir, settings)
    with quiet():
        return {task: evaluate_saved(config, task) for task in config.tasks}


def folders_of(models: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """The folder of the model that each name means."""
    if len(set(models)) < len(models):
        raise UserError("a model is named twice; name each once")
    return {model: resolve_model(model, say) for model in models}
