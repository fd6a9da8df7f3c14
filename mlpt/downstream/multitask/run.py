"""Multi-task fine-tuning: one encoder, many decoders, a sampler that picks the task of each row (CA-MTL and baselines).

Everything drawn is addressed by (seed, step), so a killed run goes on from its last checkpoint to the weights that it
would have had. Optimiser, schedule, checkpoints, tracker, features and metrics are those of the other rooms.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpt.downstream.cut_texts import notes_of_cuts
from mlpt.downstream.evaluate import Predictions, autocast, majority, outputs_of, predict, score
from mlpt.downstream.fingerprint import NAMED, differences, masks_digest, model_digest, rows_digests
from mlpt.downstream.loading import load_tokenizer, mask_gradients, masks_of, model_folder, quiet
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import Collator, TaskSet, held_out, read_tasks, tokenise_tasks
from mlpt.downstream.multitask.learner import TaskLearner
from mlpt.downstream.multitask.model import TaskView, losses_of, mean_of_tasks
from mlpt.downstream.multitask.results import MultitaskResult, RunningBest, mean_selected, selected, table
from mlpt.downstream.multitask.saving import build_multitask_model, export_stock_classifier, save_multitask_model
from mlpt.downstream.multitask.scoring import Scorer
from mlpt.downstream.samplers import PolicySampler, Row, make_sampler
from mlpt.downstream.submission import write_predictions, write_submission
from mlpt.errors import UserError
from mlpt.models.conditional.encoder import load_stock_config
from mlpt.models.conditional.freezing import freeze_layers, parameter_counts
from mlpt.outputs import read_json
from mlpt.randomness import address
from mlpt.storage.checkpoint import Checkpoints
from mlpt.storage.state import State
from mlpt.tasks import TaskData
from mlpt.training.group import default_device
from mlpt.training.optimizer import make_optimizer, set_learning_rate
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors
from mlpt.training.tracker import Tracker

Say = Callable[[str], None]
Tell = Callable[[int, dict[str, float]], None]
Show = Callable[[str, int, int, str], None]  # what is done, steps done, steps of all, how it goes
Scores = dict[str, dict[str, dict[str, float]]]  # task -> split -> metric -> fraction
_LOG_STEPS = 10


def run_multitask(
    config: MultitaskConfig,
    say: Say = print,
    tell: Tell | None = None,
    device: torch.device | None = None,
    show: Show = lambda what, done, total, note: None,
) -> MultitaskResult:
    """Train, evaluate and write everything to `config.out`.

    tell    hears each evaluation: its step, and the selecting metric of each task on its first dev split.
    device  where to train; None: the GPU if there is one.
    show    hears after each step how far it is.
    A finished run is read back; a killed one resumes. Raises `UserError` where the folder holds a run with other
    settings, rows, model or masks.
    """
    folder = Path(config.out)
    written = folder / "config.json"
    tasks = read_tasks(config.tasks, config.source)
    identity = _identity(config, tasks)
    if written.is_file() and (other := differences(read_json(written), identity)):
        raise UserError(
            f"{folder} holds a multi-task run with other settings or data ({', '.join(other)}); choose another out, "
            "or replace it with --overwrite"
        )
    if (folder / "results.json").is_file():
        finished = MultitaskResult.from_json(read_json(folder / "results.json"))
        say(f"{folder} is finished; results: {folder / 'results.json'}")
        say(table(finished))
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    named = json.loads(config.model_dump_json(include=_BY_CONTENT))
    written.write_text(json.dumps({**identity, NAMED: named}, indent=1))
    device = device or default_device()
    with quiet(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Run(config, tasks, folder, device, say, tell or (lambda step, scores: None), show).result()


class _Run:
    """The state of one run while it trains."""

    def __init__(
        self,
        config: MultitaskConfig,
        tasks: list[TaskData],
        folder: Path,
        device: torch.device,
        say: Say,
        tell: Tell,
        show: Show,
    ):
        self.config, self.folder, self.device, self.say, self.tell, self.show = config, folder, device, say, tell, show
        self.tokenizer = load_tokenizer(config.model)
        self.tasks = self._tokenised(tasks)
        self.notes = self._notes()
        self.selects = {data.task.name: data.task.select for data in self.tasks.data}
        self.model, masks = build_multitask_model(config, self.tasks.outputs, self.tasks.kinds)
        self.masks = {name: mask.to(device) for name, mask in masks.items()}
        self.frozen = self._freeze()
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self._prepare_sampling()
        self._plan()
        self.step = 0
        self.evaluations: list[tuple[int, Scores]] = []
        self.best: dict[str, Tensor] = {}
        self.rows_trained = dict.fromkeys(self.tasks.names, 0)
        self.losses: dict[str, tuple[float, int]] = {}  # sum and count of each task's losses since the last update
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=1)

    def _tokenised(self, tasks: list[TaskData]) -> TaskSet:
        cache = None if self.config.feature_cache is None else Path(self.config.feature_cache)
        encoder_config = load_stock_config(model_folder(self.config.model))
        length, config = self.config.conditional.max_length, self.config
        return tokenise_tasks(tasks, self.tokenizer, encoder_config, length, config.span, cache, config.predict_test)

    def _notes(self) -> list[str]:
        """What people should know before they read the scores, a line each; said at once."""
        asked = self.config.conditional.max_length
        notes = [warning for data in self.tasks.data for warning in data.warnings()]
        if self.tasks.length < asked:
            notes.append(f"conditional.max_length {asked} lowered to {self.tasks.length}, the model's positions")
        for data, features in zip(self.tasks.data, self.tasks.features, strict=True):
            notes += notes_of_cuts(data, features, self.tasks.length, self.config.span)
        for note in notes:
            self.say(note)
        masks = masks_of(self.config.model, self.config.masks, self.config.dense)
        if masks is not None and self.config.masks is None:
            self.say(f"fine-tuning under the masks beside the model ({masks}); dense=true leaves them aside")
        self.say(f"results go to {self.folder}")
        return notes

    def _freeze(self) -> list[str]:
        layers = self.config.freeze
        if layers == "none" or (layers == "lower_half" and self.config.encoder == "shared"):
            return []
        if layers == "lower_half":
            layers = f"0-{self.model.encoder.config.num_hidden_layers // 2 - 1}"
        return freeze_layers(self.model, layers, self.config.modulation)

    def _prepare_sampling(self) -> None:
        config, names = self.config, self.tasks.names
        train, dev = [features["train"] for features in self.tasks.features], []
        learns = config.sampler.rule == "policy"
        if learns:
            parts = [held_out(t, config.meta_dev_rows, config.seed, n) for t, n in zip(train, names, strict=True)]
            train, dev = [part[0] for part in parts], [part[1] for part in parts]
        self.collate = Collator(train, config.label_dtype)
        sizes = [len(features) for features in train]
        classes = self.tasks.classes(train)
        self.sampler = make_sampler(config.sampler, names, sizes, classes, config.batch_size, config.seed)
        self.scorer = Scorer(config.scoring, self.model, self.collate)
        self.learner = None
        if isinstance(self.sampler, PolicySampler):
            self.learner = TaskLearner(self.sampler, self.model, self.optimizer, train, dev)

    def _plan(self) -> None:
        per_epoch = self.sampler.steps_per_epoch
        self.total = self.config.max_steps or max(1, round(self.config.epochs * per_epoch))
        self.every = self.config.eval_steps or max(1, round(self.config.eval_epochs * per_epoch))
        check_schedule(self.config.schedule, self.total)

    def result(self) -> MultitaskResult:
        position = self._resume()
        self.tracker = Tracker(self.folder, position)
        begun, first_step = time.perf_counter(), self.step
        try:
            self._train()
        finally:
            self.tracker.close()
        seconds = time.perf_counter() - begun
        result = self._finish(seconds, (self.step - first_step) / max(seconds, 1e-9))
        self.checkpoints.wait()
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return result

    def _train(self) -> None:
        while self.step < self.total:
            self._update_policy()
            loss = self._one_step()
            self.step += 1
            if self.step % _LOG_STEPS == 0 or self.step == self.total:
                self._log(float(loss))
            if self.step % self.every == 0 or self.step == self.total:
                self._evaluate()
            if self.step % self.config.checkpoint_steps == 0 and self.step < self.total:
                self._save()
            self.show("fine-tuning on all tasks", self.step, self.total, self._so_far())

    def _so_far(self) -> str:
        if not self.evaluations:
            return ""
        step, scores = max(self.evaluations, key=lambda one: mean_selected(one[1], self.selects))
        return f"best mean {mean_selected(scores, self.selects):.4f} at step {step}"

    def _update_policy(self) -> None:
        if self.learner is None:
            return
        losses = {name: total / count for name, (total, count) in self.losses.items()}
        report = self.learner.update_if_due(self.step, losses)
        if report is not None:
            self.losses = {}
            self.tracker.log(self.step, {"policy": report})

    def _one_step(self) -> Tensor:
        """Choose the rows, take one optimiser step on them; returns the loss, on the device."""
        torch.manual_seed(address(self.config.seed, "multitask/score dropout", self.step))
        rows = self.sampler.batch(self.step, self.scorer)
        self._count(rows)
        batch = self.collate(rows).to(self.device)
        config = self.config
        set_learning_rate(self.optimizer, learning_rate(config.schedule, self.step, self.total, config.optimizer.lr))
        self.model.train()
        torch.manual_seed(address(config.seed, "multitask/dropout", self.step))
        with autocast(self.device, config.precision):
            logits = self.model.logits(batch)
        losses = losses_of(logits, batch)
        loss = mean_of_tasks(losses)
        loss.backward()
        if self.masks:
            mask_gradients(self.model, self.masks)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.learner is not None:
            self._remember(losses)
        return loss.detach()

    def _count(self, rows: list[Row]) -> None:
        for task, _ in rows:
            self.rows_trained[self.tasks.names[task]] += 1

    def _remember(self, losses: dict[int, Tensor]) -> None:
        for task, loss in losses.items():
            total, count = self.losses.get(self.tasks.names[task], (0.0, 0))
            self.losses[self.tasks.names[task]] = (total + float(loss.detach()), count + 1)

    def _log(self, loss: float) -> None:
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise UserError(f"the loss was not finite at step {self.step}; lower optimizer.lr and start again")
        self.tracker.log(self.step, {"loss": loss, "rows": dict(self.rows_trained)})

    def _evaluate(self) -> None:
        """Every task on each of its dev splits (MNLI on both of its own)."""
        scores: Scores = {
            data.task.name: {
                split: score(data.task, data.splits[split], self._predict(task, split).values)
                for split in data.dev_splits
            }
            for task, data in enumerate(self.tasks.data)
        }
        means = [mean_selected(earlier, self.selects) for _, earlier in self.evaluations]
        self.evaluations.append((self.step, scores))
        self.tracker.log(self.step, {"dev": scores})
        self.tell(self.step, selected(scores, self.selects))
        if all(mean_selected(scores, self.selects) > mean for mean in means):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model_tensors(self.model).items()}
        self.model.eval()  # as published: candidates after an evaluation are scored without dropout

    def _predict(self, task: int, split: str) -> Predictions:
        data, features = self.tasks.data[task], self.tasks.features[task][split]
        view, config = TaskView(self.model, task), self.config
        outputs = outputs_of(view, features, config.eval_tokens, self.device, config.precision, data.task.per_token)
        return predict(data.task, data.splits[split], features, outputs, config.span)

    def _save(self) -> None:
        learner = State() if self.learner is None else self.learner.state()
        state = {
            "evaluations": self.evaluations,
            "sampler": self.sampler.state(),
            "learner": learner.values,
            "losses": self.losses,
            "rows_trained": self.rows_trained,
            "training": self.model.training,
            "metrics_position": self.tracker.position(),
        }
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "best": self.best,
            "learner": learner.tensors,
        }
        self.checkpoints.save(self.step, state, tensors)

    def _resume(self) -> int:
        """Take up the last whole checkpoint if there is one; returns the position in `metrics.jsonl`."""
        saved = self.checkpoints.latest(self.say)
        if saved is None:
            return 0
        state = saved.state
        load_model_tensors(self.model, saved.tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, saved.tensors["optimizer"])
        self.best = saved.tensors.get("best", {})
        self.evaluations = [(step, scores) for step, scores in state["evaluations"]]
        self.sampler.load_state(state["sampler"])
        if self.learner is not None:
            self.learner.load_state(State(state["learner"], saved.tensors.get("learner", {})))
        self.losses = {name: (total, count) for name, (total, count) in state["losses"].items()}
        self.rows_trained = state["rows_trained"]
        self.model.train(state["training"])
        self.step = saved.step
        self.say(f"{self.folder}: going on from step {self.step}")
        return int(state["metrics_position"])

    def _finish(self, seconds: float, speed: float) -> MultitaskResult:
        best_step, best = max(self.evaluations, key=lambda one: mean_selected(one[1], self.selects))
        if self.config.keep_model != "last":
            load_model_tensors(self.model, self.best)
        self._write_models()
        running = RunningBest()
        for _, scores in self.evaluations:
            running.update(scores)
        sizes = {name: len(own["train"]) for name, own in zip(self.tasks.names, self.tasks.features, strict=True)}
        result = MultitaskResult(
            seed=self.config.seed,
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
            steps=self.step,
            rows={name: [self.rows_trained[name], size] for name, size in sizes.items()},
            parameters=parameter_counts(self.model),
            seconds=seconds,
            steps_per_second=speed,
            max_length=self.tasks.length,
            warnings=self.notes,
        )
        result.write(self.folder / "results.json")
        self.say(f"results: {self.folder / 'results.json'}")
        self.say(table(result))
        return result

    def _write_models(self) -> None:
        """The kept model whole, as stock classifiers where it is one, its predictions and its submission files."""
        if self.config.keep_model != "none":
            save_multitask_model(self.model, self.folder / "model", self.tokenizer)
        for task, data in enumerate(self.tasks.data):
            if self.config.export and self.config.encoder == "shared" and self.config.keep_model != "none":
                export_stock_classifier(self.model, data.task, self.folder / "stock" / data.task.name, self.tokenizer)
            tested = data.test_splits if self.config.predict_test else []
            for split in (*data.dev_splits, *tested):
                predictions, examples = self._predict(task, split), data.splits[split]
                path = self.folder / "predictions" / f"{data.task.name}_{split}.jsonl"
                write_predictions(path, data.task, examples, predictions)
                if split in tested:
                    write_submission(self.folder / "submission", data.task, split, examples, predictions)


# What changes no weight and no score, or is part of the identity in another form.
_ASIDE = {"out", "checkpoint_steps", "keep_model", "predict_test", "export", "feature_cache", "eval_tokens"}
_BY_CONTENT = {"model", "masks", "dense", "source"}


def _identity(config: MultitaskConfig, tasks: list[TaskData]) -> dict[str, Any]:
    """What must be equal for two runs to be the same: all that changes weights or scores."""
    rows = {f"{data.task.name}/{split}": one for data in tasks for split, one in rows_digests(data).items()}
    masks = masks_of(config.model, config.masks, config.dense)
    contents = {"rows": rows, "model": model_digest(config.model), "masks": masks_digest(masks)}
    return {**json.loads(config.model_dump_json(exclude=_ASIDE | _BY_CONTENT)), **contents}
