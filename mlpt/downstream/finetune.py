"""Fine-tuning one cell of the grid: a saved model, one task, one learning rate, one seed.

`run_cell` is a pure function of its cell (files aside) and knows nothing of where it runs; a runtime may run many at
once and hand each the same `Prepared`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlpt.downstream.cell_run import RESULT, SETTINGS, CellRun, Prepared
from mlpt.downstream.config import FinetuneCell, FinetuneConfig, cells, for_task
from mlpt.downstream.cut_texts import notes_of_cuts
from mlpt.downstream.evaluate import check_labels, check_metric, check_split, outputs_of, predict, score
from mlpt.downstream.fingerprint import check_same, masks_digest, model_digest, rows_digests
from mlpt.downstream.loading import Base, apply_masks, build_model, load_base, load_tokenizer, masks_of, say_masks
from mlpt.downstream.place import Place
from mlpt.downstream.results import RESULTS, CellResult, Scores, summarise, table, write_results
from mlpt.downstream.work import Say, Shown, own_randomness
from mlpt.downstream.written import WrittenTask
from mlpt.errors import UserError
from mlpt.models.config import room_for_tokens
from mlpt.outputs import read_json
from mlpt.tasks import TaskData, load_task
from mlpt.tasks.features import lost_answers, make_features
from mlpt.training.group import Group, default_device

Show = Callable[[str, int, int, str], None]  # what is done, steps done, steps of all, how it goes
Results = dict[str, CellResult]  # folder of the cell in its place -> what it found
Contents = dict[str, Any]  # digests of rows, model and masks; see `FinetuneCell.identity`


def read_task(config: FinetuneConfig, task: str, train: tuple[str, ...] = ("train",)) -> TaskData:
    """The rows of a task, with all that people can get wrong about them refused in one line."""
    data = load_task(task, config.source)
    if not data.dev_splits or any(split not in data.splits for split in train):
        there = ", ".join(data.splits) or "none"
        raise UserError(f"task '{task}' needs {' and '.join((*train, 'dev'))} rows; splits found: {there}")
    check_metric(data.task, for_task(config.metric, task))
    check_split(data, for_task(config.select_split, task))
    check_labels(data, (*train, *data.dev_splits))
    return data


def check(config: FinetuneConfig) -> dict[str, Contents]:
    """Read every task before anything is trained; task -> digests of its rows, the model and the masks.

    Raises `UserError` for the first task that cannot be fine-tuned on.
    """
    rows = {task: rows_digests(read_task(config, task)) for task in config.tasks}
    shared = _shared_contents(config)
    return {task: {"rows": digests, **shared} for task, digests in rows.items()}


def _shared_contents(config: FinetuneConfig) -> Contents:
    masks = masks_of(config.model, config.masks, config.dense)
    return {"model": model_digest(config.model), "masks": masks_digest(masks)}


def prepare(config: FinetuneConfig, task: str, train: tuple[str, ...] = ("train",)) -> Prepared:
    """Read and tokenise a task once, and the saved model; `train` is empty to evaluate only.

    Raises `UserError` for all that people can get wrong.
    """
    data = read_task(config, task, train)
    base = load_base(config.model, data.task, config.text_to_text is not None)
    tokenizer = load_tokenizer(config.model)
    masks = masks_of(config.model, config.masks, config.dense)
    wanted_length = config.max_length or data.task.max_length
    if config.text_to_text is not None:
        wanted_length = config.max_length or config.text_to_text.max_length
    length = min(wanted_length, _longest_input(base, tokenizer))
    types = getattr(base.config, "type_vocab_size", 1) > 1
    tokenise = partial(make_features, data.task, tokenizer=tokenizer, max_length=length, types=types, span=config.span)
    wanted = [*train, *data.dev_splits, *(data.test_splits if config.predict_test and train else [])]
    written: WrittenTask | None = None
    if config.text_to_text is None:
        features = {split: tokenise(data.splits[split]) for split in wanted}
    else:
        written = WrittenTask(data.task, tokenizer, config.text_to_text, length)
        features = {split: written.features(data.splits[split]) for split in wanted}
    contents = {"rows": rows_digests(data), **_shared_contents(config)}
    masked = masks and str(Path(masks).resolve())
    prepared = Prepared(data, features, base, tokenizer, length, contents, masked, written=written)
    if length < wanted_length:
        prepared.notes.append(f"task '{task}': max_length {wanted_length} lowered to {length}, the model's positions")
    if written is not None:
        prepared.lost_answers |= {
            split: written.lost_answers(data.splits[split]) for split in (*train, *data.dev_splits)
        }
        return prepared
    labelled = {split: one for split, one in features.items() if split in (*train, *data.dev_splits)}
    prepared.notes += notes_of_cuts(data, labelled if data.task.kind == "span" else features, length, config.span)
    if data.task.kind == "span":
        counts = {split: lost_answers(one, data.splits[split]) for split, one in labelled.items()}
        prepared.lost_answers |= {split: lost / max(1, answers) for split, (lost, answers) in counts.items()}
    return prepared


def _longest_input(base: Base, tokenizer: Any) -> int:
    """Tokens that the model has positions for (RoBERTa reserves some for padding)."""
    room = room_for_tokens(base.config, tokenizer.pad_token_id) or 10**6
    return min(room, tokenizer.model_max_length)


def run_cell(
    cell: FinetuneCell,
    prepared: Prepared | None = None,
    say: Say = print,
    show: Shown = lambda done, total, note: None,
    group: Group | None = None,
) -> CellResult:
    """Fine-tune, evaluate, predict, and write all of it to `cell.folder`.

    show   hears after each step how many are done, how many there are, and how it goes.
    group  this process among the ranks that share each step, with its device; None: alone, on the GPU if there is one.
    A finished cell is read back instead of run again; a killed one resumes from its last committed checkpoint.
    """
    if prepared is None:
        one_task = cell.config.model_copy(update={"tasks": (cell.task,)})
        finished = read_result(cell, check(one_task)[cell.task])
        if finished is not None:
            return finished
        prepared = prepare(cell.config, cell.task)
    group = group or Group(device=default_device())
    finished = group.share(read_result(cell, prepared.contents) if group.leads else None)
    if finished is not None:
        return finished
    with own_randomness(group):
        return CellRun(cell, prepared, group, say, show).result()


def evaluate_saved(config: FinetuneConfig, task: str) -> Scores:
    """Scores on the dev splits of a model that was fine-tuned for `task` before; nothing is trained.

    Raises `UserError` where the saved model has no head for the task's labels.
    """
    prepared = prepare(config, task, ())
    described = prepared.data.task
    model = build_model(prepared.base, described, seed=0)
    if missing := sorted(set(model.state_dict()) - set(prepared.base.weights)):
        raise UserError(f"'{config.model}' has no head for task '{task}' ({missing[0]} is missing); fine-tune it first")
    if prepared.masks:
        apply_masks(prepared.masks, model)
    device = default_device()
    model.to(device)
    scores = {}
    for split, features in prepared.features.items():
        tokens, precision = config.tokens_per_batch, config.precision
        examples = prepared.data.splits[split]
        if prepared.written is not None:
            found = prepared.written.predict(model, examples, features, tokens, device, precision)
            scores[split] = score(described, examples, found.values)
            continue
        outputs = outputs_of(model, features, tokens, device, precision, described.per_token)
        found = predict(described, examples, features, outputs, config.span, prepared.data.may_be_empty)
        scores[split] = score(described, examples, found.values)
    return scores


def read_result(cell: FinetuneCell, contents: Contents) -> CellResult | None:
    """The result that the cell left, or None. Raises `UserError` where its folder holds one of other settings, rows,
    model or masks."""
    place, folder = cell.place, cell.folder
    place.fetch(SETTINGS, RESULT)
    check_same(folder / SETTINGS, cell.identity(contents), place.name)
    if not (folder / RESULT).is_file():
        return None
    place.finish(RESULT)  # an attempt before this one may have ended while its storage was away
    return CellResult.from_json(read_json(folder / RESULT))


def read_results(config: FinetuneConfig, contents: Mapping[str, Contents], run_id: str | None = None) -> Results:
    """All results in the place of the results, by the cell's folder: also of tasks, rates and seeds that another call
    asked for. Raises `UserError` where the place is one of another model, other masks or other settings."""
    place, found = Place(config.out, run_id), {}
    shared = next(iter(contents.values()))
    for inner in place.holders("lr*-seed*", SETTINGS):
        there = replace(place, inner=inner)
        there.fetch(SETTINGS)
        before = read_json(there.folder / SETTINGS)
        task, of_its_task, its = before["task"], config, contents.get(before["task"])
        if its is None:  # what is chosen for each task is this one's own
            its = {**shared, "rows": before.get("rows", {})}
            of_its_task = config.model_copy(update={name: before.get(name) for name in ("metric", "select_split")})
        cell = FinetuneCell(of_its_task, task, before["learning_rate"], before["seed"], run_id)
        result = read_result(cell, its)
        if result is not None:
            found[cell.place.inner] = result
    return found


def write_all(place: Place, found: Results, grid: Sequence[FinetuneCell]) -> list[CellResult]:
    """Write all results that were `found` as `results.json`, those of `grid` last; they as they stand there."""
    asked = [cell.place.inner for cell in grid]
    others = [found[inner] for inner in found if inner not in asked]
    others.sort(key=lambda result: (result.task, result.learning_rate, result.seed))
    results = [*others, *(found[inner] for inner in asked if inner in found)]
    write_results(place, results)
    return results


def finetune(
    config: FinetuneConfig,
    say: Say = print,
    show: Show = lambda what, done, total, note: None,
    run: Callable[[FinetuneCell, Prepared, Say, Shown], CellResult] = run_cell,
    run_id: str | None = None,
) -> list[CellResult]:
    """All cells of the grid, one after another, each by `run` (in this process); writes `results.json` after each.

    Every task is read before the first is trained on. What other calls have left of the same model and settings stays
    in the results. run_id: of results at a URI (`mlpt.downstream.place`).
    """
    contents, grid, place = check(config), cells(config, run_id), Place(config.out, run_id)
    found = read_results(config, contents, run_id)
    say_masks(config, say)
    say(f"{len(grid)} cell{'s' if len(grid) > 1 else ''}; results go to {config.out}")
    prepared: Prepared | None = None
    for number, cell in enumerate(grid, start=1):
        if cell.place.inner not in found:
            if prepared is None or prepared.data.task.name != cell.task:
                prepared = prepare(config, cell.task)
                for warning in prepared.warnings():
                    say(warning)
            shown = partial(show, f"{cell.name} (cell {number} of {len(grid)})")
            found[cell.place.inner] = run(cell, prepared, say, shown)
        everything = write_all(place, found, grid)
    say(f"results: {place.named(RESULTS)}")
    say(table(summarise(everything)))
    return [found[cell.place.inner] for cell in grid]
