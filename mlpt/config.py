"""The configuration of a run: one tree of settings, read from a recipe and `key=value` words, written down resolved.

Each component's own settings stand beside the component; this module joins them and finds the recipes.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlpt.data.config import OF_TRAINED, DataConfig, as_prepared, lay_on
from mlpt.data.labelled import LabelledConfig, check_tasks, is_task, with_own_tasks
from mlpt.data.manifest import read_manifest
from mlpt.errors import UserError
from mlpt.meta.joint_lookahead import check_parts
from mlpt.meta.learner import MetaConfig
from mlpt.meta.policy import MIXTURE
from mlpt.meta.rules import RULES, rule_class
from mlpt.models.config import OF_NEW, ModelConfig
from mlpt.objectives import OBJECTIVES, objective_class, resolve_objective
from mlpt.reporting.boards import BoardSettings
from mlpt.settings import Settings, load_settings, merge, nested
from mlpt.sparsity.config import MaskConfig
from mlpt.training.config import TrainConfig
from mlpt.training.optimizer import check_look_ahead
from mlpt.training.sharding import why_not_sharded
from mlpt.yaml_text import parse_yaml, read_yaml

WHOLE = ("objectives",)  # settings whose mapping, on the command line, replaces the recipe's (`parse_overrides`)


class RuntimeConfig(Settings):
    """Where the run runs.

    num_workers        Ray Train workers; 0: everything in this process, for a debugger; [min, max]: elastic.
    cpus_per_worker    logical CPUs, and torch threads, of a worker. Fractions share a core.
    gpus_per_worker    GPUs of a worker.
    worker_resources   custom resources of a worker, such as {train: 1}, to keep workers off the meta-learner's node.
    meta_cpus          logical CPUs of the meta-learner's actor, fractions allowed.
    meta_gpus          GPUs of that actor, fractions allowed.
    meta_resources     custom resources of the actor, such as {meta: 1}, to place it on a node of its own.
    meta_spare         keep a second process ready for the death of the actor, so that training need not wait for the
                       imports of a new one. Without GPU and custom resources only.
    address            local: a Ray of its own on this machine; auto: the cluster that this machine belongs to;
                       or HOST:PORT.
    max_failures       worker crashes that the run restarts from its last checkpoint.
    hang_timeout       seconds without a sign of progress after which a process counts as hung: its stacks go to its
                       log, and it starts again from the last checkpoint. Where it computes, or has been slow before, it
                       has ten times as long. null: wait for ever.
    replay_every       steps between those whose forward and backward passes are made twice and compared, bit for
                       bit, so that corrupted memory is noticed; 200 costs half a per cent. On CPUs; null: none.
    compare_ranks      compare what all ranks should hold alike at every checkpoint; false where they run on
                       processors of different kinds, which may differ in a last bit.
    resize_every       seconds between looks for more nodes, with elastic workers; each resize costs the steps since the
                       last checkpoint.
    start_timeout      seconds until workers that find no place are given up and asked for again; null: 900, in which a
                       cluster may add nodes, and 60 with elastic workers, which then make do with fewer.
    """

    num_workers: int | tuple[int, int] = 1
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    worker_resources: dict[str, float] = Field(default_factory=dict)
    meta_cpus: float = Field(1, ge=0)
    meta_gpus: float = Field(0, ge=0)
    meta_resources: dict[str, float] = Field(default_factory=dict)
    meta_spare: bool = True
    address: str = "local"
    max_failures: int = Field(3, ge=0)
    hang_timeout: float | None = Field(300, gt=0)
    replay_every: int | None = Field(None, gt=0)
    compare_ranks: bool = True
    resize_every: float = Field(60, gt=0)
    start_timeout: float | None = Field(None, gt=0)
    preemption_every: int = Field(20, gt=0, description="steps between looks for a preemption notice, on a cluster")

    @field_validator("num_workers")
    @classmethod
    def _sensible(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (workers, workers) if isinstance(workers, int) else workers
        if least < 0 or most < least or (least == 0 and most > 0):
            raise ValueError("a number of workers, 0 for this process, or [min, max] with 1 <= min <= max")
        return workers

    @model_validator(mode="after")
    def _replays_repeat(self) -> "RuntimeConfig":
        if self.replay_every is not None and self.gpus_per_worker:
            raise ValueError(
                "replay_every compares bits, and kernels of GPUs add in another order each time: leave it out"
            )
        return self

    @property
    def least_workers(self) -> int:
        """The smallest world size."""
        return max(1, self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0])

    @property
    def most_workers(self) -> int:
        """The largest world size."""
        return max(1, self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1])


class ReportConfig(BoardSettings):
    """What a run writes besides its results."""

    html: bool = Field(True, description="report.html, one page of figures, at the end of the run")
    samples: int = Field(
        8, ge=0, description="times in a run at which a few texts are kept as they train and are understood; 0: never"
    )
    licence: str = Field("unknown", description="of the model, for its card: an id that hubs know, such as apache-2.0")
    progress: Literal["auto", "bar", "lines", "off"] = Field(
        "auto", description="auto: a bar on a terminal, else lines"
    )

    @field_validator("progress", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads `off` as false."""
        return "off" if value is False else value


def _plain_mlm() -> dict[str, dict[str, Any]]:
    return {"mlm": {}}


class RunConfig(Settings):
    """One pretraining run.

    name        of the run, in the name of a new folder and on boards.
    seed        of everything that is drawn: first weights, rows, corruption, dropout.
    run_dir     its folder, or a URI (s3://, gs://, ...). None: a new folder under runs/, named after recipe and time.
    blocks      prepared blocks, a folder or URI that every node can read: made from `data` if they are not there yet.
                None: a folder in the user's cache.
    objectives  {NAME: {its settings}}, below; or names alone, mlm,clm.
    tasks       labelled tasks that train beside the objectives, each an arm: names, or files (mine.csv, mine.yaml).
    """

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    run_dir: str | None = None
    blocks: str | None = None
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    objectives: dict[str, dict[str, Any]] = Field(default_factory=_plain_mlm)
    tasks: tuple[str, ...] = ()
    labelled: LabelledConfig = Field(default_factory=LabelledConfig)
    masks: MaskConfig | None = None
    meta: MetaConfig = Field(default_factory=MetaConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """`mlm` and `[mlm, cse]` are short for `{mlm: {}, cse: {}}`; an objective set to null is taken out."""
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",")]
        if isinstance(value, list):
            return {str(name): {} for name in value}
        if isinstance(value, dict):
            return {name: settings or {} for name, settings in value.items() if settings is not None}
        return value

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not value:
            raise ValueError(f"at least one objective is needed, of {', '.join(OBJECTIVES)}")
        resolved = {}
        for name, settings in value.items():
            if re.fullmatch(r"\w+", name) is None:
                raise ValueError(f"'{name}' can't name an objective: take letters, digits and '_'")
            resolved[name] = resolve_objective(name, settings, "objectives")  # its `UserError` goes through pydantic
        return resolved

    @model_validator(mode="before")
    @classmethod
    def _tasks_of_files(cls, values: Any) -> Any:
        return with_own_tasks(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _tasks_fit(self) -> "RunConfig":
        check_tasks(self.tasks, self.measured_tasks, self.labelled, [*self.objectives, *(self.data.sources or ())])
        return self

    @property
    def measured_tasks(self) -> list[str]:
        """Labelled tasks that the target looks at and that do not train."""
        others = {*self.tasks, *self.objectives, *(self.data.sources or ())}
        return [name for name in self.meta.weights if name not in others and is_task(name, self.labelled)]

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        workers, train = self.runtime.most_workers, self.train
        if train.micro_batches < workers:
            size = train.largest_micro_batch(workers)
            advice = "raise train.batch_size" if size is None else f"set train.micro_batch_size={size} or less"
            raise ValueError(
                f"{workers} workers need a micro-batch each, and a step has {train.micro_batches} of "
                f"{train.micro_batch_size} blocks: {advice}"
            )
        if reason := why_not_sharded(self):
            raise ValueError(f"train.parallel=fsdp {reason}, or take train.parallel=ddp")
        return self

    @model_validator(mode="after")
    def _can_be_learned(self) -> "RunConfig":
        """The meta-learner's rules and what they would learn from."""
        if MIXTURE not in self.meta.rules:
            raise ValueError("meta.rules needs a rule of the mixture, such as {mixture: {rule: uniform}}")
        for part, settings in self.meta.rules.items():
            rule = rule_class(part, settings.rule)
            if rule.learns_from_draws and self.train.draw == "weighted":
                raise ValueError(
                    f"rule '{rule.name}' learns from which arms are drawn, and train.draw=weighted draws none: set "
                    f"train.draw=step, or another meta.rules.{part}.rule"
                )
            if rule.learns_from_draws and self.train.sampling != "mixture":
                raise ValueError(
                    f"rule '{rule.name}' learns from how often its mixture draws arms, and train.sampling draws them: "
                    f"leave train.sampling out, or set another meta.rules.{part}.rule"
                )
            if rule.needs_moments and (averaged := self._averaged()):
                raise ValueError(
                    f"the meta-learner of rule '{rule.name}' has no average of the workers' weights, which "
                    f"objectives.{averaged}.smoothing.reference=average wants: take current or frozen"
                )
            if rule.needs_moments:
                check_look_ahead(f"rule '{rule.name}'", self.train.optimizer, "train.optimizer")
            check_parts(rule, self.meta.lookahead, "meta.lookahead")
            if reason := rule.refuses(settings, self):
                raise ValueError(reason)
        for name, values in self.objectives.items():
            if reason := objective_class(name, values).refuses(values, self):
                raise ValueError(f"objectives.{name}: {reason}")
        return self

    def _averaged(self) -> str | None:
        """The objective whose targets refer to a moving average of the weights."""
        smoothed = {name: values.get("smoothing") or {} for name, values in self.objectives.items()}
        return next((name for name, how in smoothed.items() if how.get("reference") == "average"), None)

    @classmethod
    def settings_by_name(cls) -> dict[str, list[type[Settings]]]:
        """The settings that stand in mappings, by dotted key, and what each may be: where `mlpt.setting_names` goes on
        looking."""
        rules: dict[str, list[type[Settings]]] = {
            f"meta.rules.{part}": [rule.Config for rule in named.values()] for part, named in RULES.items()
        }
        return rules | {f"objectives.{name}": [objective.Config] for name, objective in OBJECTIVES.items()}


def load_run_config(recipe: str | Mapping[str, Any] | None, *overrides: Mapping[str, Any]) -> RunConfig:
    """The recipe (a packaged name, a YAML path or values; None: quickstart) with `overrides` laid on it, one by one.

    A pretrained model brings its dimensions and its tokenizer: where one of the overrides names a model, what those
    before it said of them falls away, and what it says of them itself is honoured or refused. So do settings of a text
    give way to another text; what is asked of a prepared folder it must have.
    Raises `UserError` for an unknown recipe, unreadable YAML, unknown keys or impossible values.
    """
    values = nested(recipe) if isinstance(recipe, Mapping) else read_recipe("quickstart" if recipe is None else recipe)
    for one in map(nested, overrides):
        values = _laid_on(values, one)
    config = _with_tokenizer_of_model(load_settings(RunConfig, values), values)
    data = as_prepared(config.data, values.get("data") or {})
    if data is not config.data and config.blocks is not None:
        raise UserError(f"blocks={config.blocks} has no use: {config.data.places[0]} is prepared; leave blocks out")
    return config.model_copy(update={"data": data})


def _laid_on(values: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    base = _without_model(values) if _names_model(one) else values
    laid = merge(base, one)
    if isinstance(base.get("data"), Mapping) and isinstance(one.get("data"), Mapping):
        laid["data"] = lay_on(base["data"], one["data"])
    return laid


def _names_model(values: Mapping[str, Any]) -> bool:
    model = values.get("model")
    return isinstance(model, Mapping) and model.get("pretrained") is not None


def _without_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without what a pretrained model brings."""
    brought = {"model": ("pretrained", "dropout", *OF_NEW), "data": ("tokenizer", *OF_TRAINED)}
    kept = dict(values)
    for section, keys in brought.items():
        if isinstance(said := values.get(section), Mapping):
            kept[section] = {key: value for key, value in said.items() if key not in keys}
    return kept


def _with_tokenizer_of_model(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """`config` with the pretrained model's tokenizer, unless the values `given` name one or the text is prepared."""
    model, data = config.model.pretrained, given.get("data") or {}
    if model is None or data.get("tokenizer") is not None:
        return config
    sources = [*(config.data.places if len(config.data.places) == 1 else []), *filter(None, [config.blocks])]
    if any(read_manifest(source) is not None for source in sources):
        return config  # and the run checks that the tokenizer of the blocks is the model's
    return config.model_copy(update={"data": load_settings(DataConfig, {**data, "tokenizer": model}, "data")})


def read_recipe(name: str) -> dict[str, Any]:
    """The mapping in a packaged recipe or in a YAML file."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no recipe file {name}")
        return _mapping(read_yaml(path, name), name)
    if name not in recipe_names():
        raise UserError(f"there is no recipe '{name}'; there are {', '.join(recipe_names())}, or give a .yaml file")
    return _mapping(parse_yaml((resources.files("mlpt.recipes") / f"{name}.yaml").read_bytes(), name), name)


def recipe_names() -> list[str]:
    """The packaged recipes of pretraining; the presets of fine-tuning lie among them (`mlpt.downstream.command`)."""
    files = [file.name for file in resources.files("mlpt.recipes").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and "finetune_" not in name)


def _mapping(values: Any, name: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{name} holds no settings: a recipe is a YAML mapping such as 'train: {{steps: 100}}'")
    return values
