"""Fine-tuning one cell of the grid: a saved model, one task, one learning rate, one seed.

`run_cell` is a pure function of its cell (files aside) and knows nothing of where it runs; a runtime may run many at
once and hand each the same `Prepared`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.cell_run import RESULT, SETTINGS, CellRun, Prepared
from mlpt.downstream.config import FinetuneCell, FinetuneConfig, cells
from mlpt.downstream.evaluate import check_metric, outputs_of, predict, score
from mlpt.downstream.features import make_features
from mlpt.downstream.loading import Base, apply_masks, build_model, load_base, load_tokenizer
from mlpt.downstream.results import CellResult, Scores, summarise, table, write_results
from mlpt.errors import UserError
from mlpt.models.config import positions_needed
from mlpt.tasks import load_task
from mlpt.training.group import default_device

Say = Callable[[str], None]


def prepare(config: FinetuneConfig, task: str, train: tuple[str, ...] = ("train",)) -> Prepared:
    """Read and tokenise a task once, and the saved model; `train` is empty to evaluate only.

    Raises `UserError` for all that people can get wrong.
    """
    data = load_task(task, config.source)
    if not data.dev_splits or any(split not in data.splits for split in train):
        there = ", ".join(data.splits) or "none"
        raise UserError(f"task '{task}' needs {' and '.join((*train, 'dev'))} rows; splits found: {there}")
    check_metric(data.task, config.metric)
    for split in (*train, *data.dev_splits):
        if any(example.label is None for example in data.splits[split]):
            raise UserError(f"split '{split}' of task '{task}' has rows without a label; give its labelled file")
    base, tokenizer = load_base(config.model, data.task), load_tokenizer(config.model)
    length = min(config.max_length or data.task.max_length, _longest_input(base, tokenizer))
    types = getattr(base.config, "type_vocab_size", 1) > 1
    tokenise = partial(make_features, data.task, tokenizer=tokenizer, max_length=length, types=types, span=config.span)
    wanted = [*train, *data.dev_splits, *(data.test_splits if config.predict_test and train else [])]
    return Prepared(data, {split: tokenise(data.splits[split]) for split in wanted}, base, tokenizer)


def _longest_input(base: Base, tokenizer: Any) -> int:
    """Tokens that the model has positions for (RoBERTa reserves some for padding)."""
    reserved = positions_needed(base.config.model_type, Vocabulary.of(tokenizer), 0)
    positions = getattr(base.config, "max_position_embeddings", None) or 10**6
    return min(positions - reserved, tokenizer.model_max_length)


def run_cell(cell: FinetuneCell, prepared: Prepared | None = None, say: Say = print) -> CellResult:
    """Fine-tune, evaluate, predict, and write all of it to `cell.folder`.

    A finished cell is read back instead of run again; a killed one resumes from its last committed checkpoint.
    """
    finished = read_result(cell)
    if finished is not None:
        return finished
    prepared = prepared or prepare(cell.config, cell.task)
    device = default_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return CellRun(cell, prepared, device, say).result()


def evaluate_saved(config: FinetuneConfig, task: str) -> Scores:
    """Scores on the dev splits of a model that was fine-tuned for `task` before; nothing is trained.

    Raises `UserError` where the saved model has no head for the task's labels.
    """
    prepared = prepare(config, task, ())
    described = prepared.data.task
    model = build_model(prepared.base, described, seed=0)
    if missing := sorted(set(model.state_dict()) - set(prepared.base.weights)):
        raise UserError(f"'{config.model}' has no head for task '{task}' ({missing[0]} is missing); fine-tune it first")
    if config.masks:
        apply_masks(config.masks, model)
    device = default_device()
    model.to(device)
    scores = {}
    for split, features in prepared.features.items():
        spans = described.kind == "span"
        outputs = outputs_of(model, features, config.tokens_per_batch, device, config.precision, spans)
        examples = prepared.data.splits[split]
        scores[split] = score(described, examples, predict(described, examples, features, outputs, config.span).values)
    return scores


def read_result(cell: FinetuneCell) -> CellResult | None:
    """The result that the cell left, or None. Raises `UserError` where its folder holds another configuration's."""
    path, settings = cell.folder / RESULT, cell.folder / SETTINGS
    if settings.is_file() and json.loads(settings.read_text()) != cell.identity():
        raise UserError(f"{cell.folder} holds a fine-tuning with other settings; choose another out, or remove it")
    return CellResult.from_json(json.loads(path.read_text())) if path.is_file() else None


def finetune(config: FinetuneConfig, say: Say = print) -> list[CellResult]:
    """All cells of the grid, one after another in this process; writes `results.json` after each."""
    results: list[CellResult] = []
    for task in config.tasks:
        prepared = None
        for cell in cells(config.model_copy(update={"tasks": (task,)})):
            cell = replace(cell, config=config)
            if read_result(cell) is None and prepared is None:
                prepared = prepare(config, task)
                for warning in prepared.data.warnings():
                    say(warning)
            results.append(run_cell(cell, prepared, say))
            write_results(Path(config.out) / "results.json", results)
    say(table(summarise(results)))
    return results
