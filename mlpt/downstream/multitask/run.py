"""Multi-task fine-tuning: one encoder, many decoders, a sampler that picks the task of each row (CA-MTL and baselines).

Everything drawn is addressed by (seed, step), so a killed run goes on from its last checkpoint to the weights that it
would have had. Optimiser, schedule, checkpoints, tracker, features and metrics are those of the other rooms.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpt.downstream.config import ASIDE, BY_CONTENT
from mlpt.downstream.cut_texts import notes_of_cuts
from mlpt.downstream.evaluate import Predictions, autocast, majority, outputs_of, predict, score
from mlpt.downstream.fingerprint import NAMED, check_same, masks_digest, model_digest, rows_digests
from mlpt.downstream.loading import load_tokenizer, masks_of, model_folder, say_masks
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import Collator, TaskSet, held_out, read_tasks, tokenise_tasks
from mlpt.downstream.multitask.learner import TaskLearner
from mlpt.downstream.multitask.model import MultitaskModel, TaskView, losses_of
from mlpt.downstream.multitask.results import MultitaskResult, RunningBest, Scores, mean_selected, selected, table
from mlpt.downstream.multitask.saving import build_multitask_model, export_stock_classifier, save_multitask_model
from mlpt.downstream.multitask.scoring import Scorer
from mlpt.downstream.place import Place
from mlpt.downstream.samplers import PolicySampler, Row, make_sampler
from mlpt.downstream.submission import write_predictions, write_submission
from mlpt.downstream.work import Finetuning, Say, own_randomness
from mlpt.errors import UserError
from mlpt.meta.policy import MIXTURE
from mlpt.meta.rules import rule_class
from mlpt.meta.rules.mixture import MixtureRule
from mlpt.models.conditional.encoder import load_stock_config
from mlpt.models.conditional.freezing import freeze_layers, parameter_counts
from mlpt.models.quiet import quiet
from mlpt.outputs import read_json, write_json
from mlpt.randomness import address
from mlpt.storage.state import State
from mlpt.tasks import TaskData
from mlpt.tasks.features import Features
from mlpt.training.group import Group, default_device
from mlpt.training.optimizer import set_learning_rate
from mlpt.training.work import Tensors

Tell = Callable[[int, dict[str, float]], None]
Show = Callable[[str, int, int, str], None]  # what is done, steps done, steps of all, how it goes
SETTINGS, RESULTS = "config.json", "results.json"


def run_multitask(
    config: MultitaskConfig,
    say: Say = print,
    tell: Tell | None = None,
    group: Group | None = None,
    show: Show = lambda what, done, total, note: None,
    run_id: str | None = None,
) -> MultitaskResult:
    """Train, evaluate and write everything to `config.out`.

    tell    hears each evaluation: its step, and the selecting metric of each task on its first dev split.
    group   this process among the ranks that share each step, with its device; None: alone, on the GPU if there is one.
    show    hears after each step how far it is.
    run_id  of results at a URI (`mlpt.downstream.place`).
    A finished run is read back; a killed one resumes. Raises `UserError` where the folder holds a run with other
    settings, rows, model or masks.
    """
    place, group = Place(config.out, run_id), group or Group(device=default_device())
    tasks = read_tasks(config.tasks, config.source)
    finished = group.share(read_finished(config, tasks, run_id) if group.leads else None)
    if finished is not None:
        say(f"{place.name} is finished; results: {place.named(RESULTS)}")
        say(table(finished))
        return finished
    if group.leads:
        place.folder.mkdir(parents=True, exist_ok=True)
        named = json.loads(config.model_dump_json(include=BY_CONTENT))
        (place.folder / SETTINGS).write_text(json.dumps({**_identity(config, tasks), NAMED: named}, indent=1))
    with quiet(), own_randomness(group):
        return MultitaskRun(config, tasks, place, group, say, tell or (lambda step, scores: None), show).result()


def read_finished(config: MultitaskConfig, tasks: list[TaskData], run_id: str | None = None) -> MultitaskResult | None:
    """The result that lies in `config.out`, or None. Raises `UserError` where it is one of other settings or data."""
    place = Place(config.out, run_id)
    folder = place.folder
    place.fetch(SETTINGS, RESULTS)
    check_same(folder / SETTINGS, _identity(config, tasks), place.name)
    if not (folder / RESULTS).is_file():
        return None
    place.finish(RESULTS)  # an attempt before this one may have ended while its storage was away
    return MultitaskResult.from_json(read_json(folder / RESULTS))


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: its number in the step, rows of tasks, of each task's rows the share that they are, and how many
    tasks the whole step has."""

    slot: int
    rows: list[Row]
    shares: dict[int, float]
    tasks: int


class MultitaskRun(Finetuning[MicroBatch, Scores]):
    """One rank of one run while it trains."""

    model: MultitaskModel
    dropout, measure, advice = "multitask/dropout", "mean", "lower optimizer.lr and start again with --overwrite"

    def __init__(
        self,
        config: MultitaskConfig,
        tasks: list[TaskData],
        place: Place,
        group: Group,
        say: Say,
        tell: Tell,
        show: Show,
    ) -> None:
        self.config, self.tell = config, tell if group.leads else (lambda step, scores: None)
        self.tokenizer = load_tokenizer(config.model)
        self.tasks = self._tokenised(tasks)
        self.notes = self._notes(say if group.leads else (lambda text: None))
        self.selects = {data.task.name: data.task.select for data in self.tasks.data}
        model, masks = build_multitask_model(config, self.tasks.outputs, self.tasks.kinds)
        self._freeze(model)
        train, dev = self._training_rows()
        self.collate = Collator(train, config.label_dtype)
        self.weights = [features.weights for features in train]
        sizes, classes = [len(features) for features in train], self.tasks.classes(train)
        self.sampler = make_sampler(config.sampler, self.tasks.names, sizes, classes, config.batch_size, config.seed)
        per_epoch = self.sampler.steps_per_epoch
        total = config.max_steps or max(1, round(config.epochs * per_epoch))
        every = config.steps_between_evaluations(per_epoch)
        shown = partial(show, "fine-tuning on all tasks")
        rate, name = config.optimizer.lr, config.out
        seed = config.seed
        super().__init__(config, model, masks, seed, rate, total, every, name, place, SETTINGS, group, say, shown)
        self._states = self.for_training(model.encoder.states)
        self.scorer = Scorer(config.scoring, model, self.collate, group)
        self.learner = None
        if isinstance(self.sampler, PolicySampler):
            self.learner = TaskLearner(self.sampler, model, self.optimizer, train, dev)
        self.rows_trained = dict.fromkeys(self.tasks.names, 0)
        self.losses: dict[str, tuple[float, int]] = {}  # sum and count of each task's losses since the last update
        self._seen = torch.zeros(len(self.tasks.names), dtype=torch.float64)  # losses of the step, by task id
        self._drawn: list[int] = []  # the tasks of the step

    def _tokenised(self, tasks: list[TaskData]) -> TaskSet:
        cache = None if self.config.feature_cache is None else Path(self.config.feature_cache)
        encoder_config = load_stock_config(model_folder(self.config.model))
        length, config = self.config.conditional.max_length, self.config
        return tokenise_tasks(tasks, self.tokenizer, encoder_config, length, config.span, cache, config.predict_test)

    def _notes(self, say: Say) -> list[str]:
        """What people should know before they read the scores, a line each; said at once."""
        asked = self.config.conditional.max_length
        notes = [warning for data in self.tasks.data for warning in data.warnings()]
        if self.tasks.length < asked:
            notes.append(f"conditional.max_length {asked} lowered to {self.tasks.length}, the model's positions")
        for data, features in zip(self.tasks.data, self.tasks.features, strict=True):
            notes += notes_of_cuts(data, features, self.tasks.length, self.config.span)
        for note in notes:
            say(note)
        say_masks(self.config, say)
        say(f"results go to {self.config.out}")
        return notes

    def _freeze(self, model: MultitaskModel) -> None:
        layers = self.config.freeze
        if layers == "none" or (layers == "lower_half" and self.config.encoder == "shared"):
            return
        if layers == "lower_half":
            layers = f"0-{model.encoder.config.num_hidden_layers // 2 - 1}"
        freeze_layers(model, layers, self.config.modulation)

    def _training_rows(self) -> tuple[list[Features], list[Features]]:
        """By task id the rows to train on, and those held out for a policy's rule, where there is one."""
        train = [features["train"] for features in self.tasks.features]
        if self.config.sampler.rule != "policy":
            return train, []
        rows, seed = self.config.meta_dev_rows, self.config.seed
        parts = [
            held_out(one, data.splits["train"], rows, seed, data.task.name)
            for one, data in zip(train, self.tasks.data, strict=True)
        ]
        return [part[0] for part in parts], [part[1] for part in parts]

    def result(self) -> MultitaskResult:
        """Train to the end, from the last checkpoint if there is one, and write what was found."""
        self.train()
        if self.diverged:  # a sweep must not take it for a result
            raise UserError(self.stopped)
        self._write_models()
        result = self._result()
        if self.group.leads:
            write_json(self.folder / RESULTS, asdict(result))
            self.place.finish(RESULTS)
        self.say(f"results: {self.place.named(RESULTS)}")
        self.say(table(result))
        self.forget_checkpoints()
        return result

    def launch(self, step: int, rate: float) -> None:
        """Update the policy, which counts from this very step."""
        if self.learner is None:
            return
        set_learning_rate(self.optimizer, rate)  # look-aheads make the coming step
        losses = {name: total / count for name, (total, count) in self.losses.items()}
        report = self.learner.update_if_due(step, losses)
        if report is not None:
            self.losses = {}
            self.tracker.log(step, {"policy": report})

    def plan(self, step: int) -> list[MicroBatch]:
        """The rows that the sampler chooses, in parts."""
        torch.manual_seed(address(self.seed, "multitask/score dropout", step))
        rows = self.sampler.batch(step, self.scorer)
        self.model.train()
        for task, _ in rows:
            self.rows_trained[self.tasks.names[task]] += 1
        whole = self._weights(rows)
        self._drawn = sorted(whole)
        parts = []
        chunks = self.collate.chunks(rows, self.config.tokens_per_batch, self.config.micro_batch_size)
        for slot, places in enumerate(chunks):
            own = [rows[place] for place in places]
            shares = {task: weight / max(1.0, whole[task]) for task, weight in self._weights(own).items()}
            parts.append(MicroBatch(slot, own, shares, len(whole)))
        return parts

    def _weights(self, rows: list[Row]) -> dict[int, float]:
        """Task id -> what `rows` weigh in its mean loss."""
        weights: dict[int, float] = {}
        for task, row in rows:
            weights[task] = weights.get(task, 0.0) + float(self.weights[task][row])
        return weights

    def loss_of(self, micro_batch: MicroBatch, after: MicroBatch | None) -> Tensor:
        batch = self.collate(micro_batch.rows).to(self.device)
        with autocast(self.device, self.config.precision):
            logits = self.model.logits(batch, self._states)
        losses = {task: loss * micro_batch.shares[task] for task, loss in losses_of(logits, batch).items()}
        if self.learner is not None:
            for task, loss in losses.items():
                self._seen[task] += float(loss.detach())
        return torch.stack(list(losses.values())).sum() / micro_batch.tasks

    def examine(self, step: int, losses: Sequence[Tensor], norm: Tensor) -> tuple[bool, bool]:
        if self.learner is not None:
            self.group.sum(self._seen)
            for task in self._drawn:
                name, seen = self.tasks.names[task], float(self._seen[task])
                total, count = self.losses.get(name, (0.0, 0))
                self.losses[name] = (total + seen, count + 1)
            self._seen.zero_()
        return super().examine(step, losses, norm)

    def figures(self, mean: float, last: Tensor) -> dict[str, Any]:
        return {"loss": float(last), "rows": dict(self.rows_trained)}

    def scores(self) -> Scores:
        """Every task on each of its dev splits (MNLI on both of its own)."""
        return {
            data.task.name: {
                split: score(data.task, data.splits[split], self._predict(task, split).values)
                for split in data.dev_splits
            }
            for task, data in enumerate(self.tasks.data)
        }

    def value(self, scores: Scores) -> float:
        return mean_selected(scores, self.selects)

    def evaluate(self, step: int) -> bool:
        keep = super().evaluate(step)
        self.tell(step, selected(self.evaluations[-1][1], self.selects))
        self.model.eval()  # as published: candidates after an evaluation are scored without dropout
        return keep

    def _predict(self, task: int, split: str) -> Predictions:
        data, features = self.tasks.data[task], self.tasks.features[task][split]
        view, config, per_token = TaskView(self.model, task), self.config, data.task.per_token
        tokens = config.tokens_per_batch
        outputs = outputs_of(view, features, tokens, self.device, config.precision, per_token, self.group)
        return predict(data.task, data.splits[split], features, outputs, config.span, data.may_be_empty)

    def state(self, step: int) -> tuple[Mapping[str, Any], Tensors]:
        learner = State() if self.learner is None else self.learner.state()
        values, tensors = super().state(step)
        own = {
            "sampler": self.sampler.state(),
            "learner": learner.values,
            "losses": self.losses,
            "rows_trained": self.rows_trained,
            "training": self.model.training,
        }
        return {**values, **own}, {**tensors, "learner": learner.tensors}

    def load_state(self, values: Mapping[str, Any], tensors: Tensors) -> None:
        super().load_state(values, tensors)
        self.sampler.load_state(values["sampler"])
        if self.learner is not None:
            self.learner.load_state(State(values["learner"], tensors.get("learner", {})))
        self.losses = {name: (total, count) for name, (total, count) in values["losses"].items()}
        self.rows_trained = values["rows_trained"]
        self.model.train(values["training"])

    def _result(self) -> MultitaskResult:
        best_step, best = self.best_evaluation()
        running = RunningBest()
        for _, scores in self.evaluations:
            running.update(scores)
        sizes = {name: len(own["train"]) for name, own in zip(self.tasks.names, self.tasks.features, strict=True)}
        return MultitaskResult(
            seed=self.seed,
            sampler=self.config.sampler.rule,
            encoder=self.config.encoder,
            best=best,
            best_step=best_step,
            last=self.evaluations[-1][1],
            running_best=running.scores,
            majority={
                data.task.name: {
                    split: majority(data.task, data.splits["train"], data.splits[split]) for split in data.dev_splits
                }
                for data in self.tasks.data
            },
            selects=self.selects,
            steps=self.loop.step,
            rows={name: [self.rows_trained[name], size] for name, size in sizes.items()},
            parameters=parameter_counts(self.model),
            seconds=self.seconds,
            steps_per_second=self.steps_per_second,
            max_length=self.tasks.length,
            warnings=[*self.notes, *([self.stopped] if self.stopped else [])],
        )

    def _write_models(self) -> None:
        """The kept model whole, as stock classifiers where it is one, its predictions and its submission files."""
        leads, keeps = self.group.leads, self.config.keep_model != "none" and self.group.leads
        if keeps:
            save_multitask_model(self.model, self.folder / "model", self.tokenizer)
        for task, data in enumerate(self.tasks.data):
            if keeps and self.config.export and self.config.encoder == "shared":
                export_stock_classifier(self.model, data.task, self.folder / "stock" / data.task.name, self.tokenizer)
            tested = data.test_splits if self.config.predict_test else []
            for split in (*data.dev_splits, *tested):
                predictions, examples = self._predict(task, split), data.splits[split]
                path = self.folder / "predictions" / f"{data.task.name}_{split}.jsonl"
                if leads:
                    write_predictions(path, data.task, examples, predictions)
                if leads and split in tested:
                    write_submission(self.folder / "submission", data.task, split, examples, predictions)


# What changes no weight and no score.
_ASIDE = ASIDE | {"export", "feature_cache"}


def _identity(config: MultitaskConfig, tasks: list[TaskData]) -> dict[str, Any]:
    """What must be equal for two runs to be the same: all that changes weights or scores."""
    rows = {f"{data.task.name}/{split}": one for data in tasks for split, one in rows_digests(data).items()}
    masks = masks_of(config.model, config.masks, config.dense)
    contents = {"rows": rows, "model": model_digest(config.model), "masks": masks_digest(masks)}
    named = json.loads(config.model_dump_json(exclude=_ASIDE | BY_CONTENT))
    if isinstance(config.sampler, PolicySampler.Config):  # earlier versions wrote the floor that null is now
        learner = config.sampler.learner
        rule = rule_class(MIXTURE, learner.rule)
        if getattr(learner, "floor", 0.0) is None and issubclass(rule, MixtureRule):
            named["sampler"]["learner"]["floor"] = rule.floor_of(learner, len(tasks))
    return {**named, **contents}
