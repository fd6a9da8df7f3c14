"""What a sweep explores: a space is a module whose docstring asks a question and whose `space` says where to look.

The shipped ones are in `tune_spaces`; a user's own is a file of the same shape, given by its path.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from ray.tune.search.sample import Domain

from mlpt.errors import UserError

Search = Literal["random", "grid", "tpe"]
Scheduler = Literal["none", "asha", "hyperband", "pbt"]
Mode = Literal["min", "max"]
JobName = Literal["pretrain", "multitask"]
Settings = Mapping[str, Any]


def as_settings(point: Settings) -> dict[str, Any]:
    """The default meaning of a point: its parameters are dotted configuration keys."""
    return dict(point)


@dataclass(frozen=True)
class Space:
    """Where a sweep looks, what it wants and what it may spend.

    parameters   parameter -> Tune domain (`tune.uniform`, `tune.choice`, `tune.grid_search`, ...) or a constant.
    metrics      metric -> `min` or `max`. One: the best mean wins. Several: the Pareto front of the means.
                 `dev/NAME` is the meta-dev loss of an arm in nats (the selecting metric of a task), `dev/mean` their
                 mean, `dev/target` the target's; `latency` the milliseconds of a forward pass of the exported model,
                 at a trial's end.
    tokens       training budget of one trial, in tokens (multitask: at most, as shorter rows count as full ones).
    trials       points tried (with `grid`: passes over the grid).
    job          what a trial is: `pretrain` or `multitask` (fine-tuning on many tasks at once, without a recipe).
    settings     turns a point into dotted configuration keys; parameters that another choice makes meaningless
                 are left out here.
    base         dotted configuration keys that every trial shares, over `recipe`.
    search       how points are chosen: at random, by grid, or by Optuna's TPE (several metrics: its NSGA-II).
    scheduler    who stops early, counted in tokens: nobody, ASHA, Hyperband; or PBT, which copies the weights of good
                 trials into bad ones and perturbs `mutable` parameters.
    seeds        seeds that each of the `finalists` runs with in the end; they are compared by their means.
    finalists    the best points of the search (the whole front, for several metrics) that get the other seeds.
    evaluations  reports of each trial to the scheduler, at equal distances in tokens.
    mutable      names of the parameters that PBT may perturb.
    first        points that are tried before those that the search draws; they count among `trials`.
    fitted       what the space becomes for the runs that somebody asks for, such as one parameter for each of their
                 texts: `fitted(space, trial_of)`, where `trial_of(space)` is a trial's configuration without a point.
    """

    parameters: dict[str, Any]
    metrics: dict[str, Mode]
    tokens: int
    trials: int
    recipe: str = "quickstart"
    job: JobName = "pretrain"
    base: dict[str, Any] = field(default_factory=dict)
    settings: Callable[[Settings], dict[str, Any]] = as_settings
    search: Search = "random"
    scheduler: Scheduler = "asha"
    seeds: int = 1
    finalists: int = 3
    evaluations: int = 9
    mutable: tuple[str, ...] = ()
    first: tuple[dict[str, Any], ...] = ()
    fitted: Callable[["Space", Callable[["Space"], Any]], "Space"] | None = None
    name: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        """Raise `UserError` for a space that no sweep could run."""
        where = f"space '{self.name}'" if self.name else "the space"
        if not self.metrics or any(mode not in get_args(Mode) for mode in self.metrics.values()):
            raise UserError(f"{where} needs metrics, each `min` or `max`, for example {{'dev/mlm': 'min'}}")
        for option, names in (("search", Search), ("scheduler", Scheduler), ("job", JobName)):
            if getattr(self, option) not in get_args(names):
                valid = ", ".join(get_args(names))
                raise UserError(f"{where}: {option} '{getattr(self, option)}' is unknown; valid: {valid}")
        for option in ("tokens", "trials", "seeds", "finalists", "evaluations"):
            if getattr(self, option) < 1:
                raise UserError(f"{where}: {option} must be at least 1, not {getattr(self, option)}")
        if not self.parameters:
            raise UserError(f"{where} has no parameters to explore")
        self._check_combination(where)

    def _check_combination(self, where: str) -> None:
        grids = [key for key, domain in self.parameters.items() if is_grid(domain)]
        if grids and self.search == "tpe":
            raise UserError(f"{where}: tpe cannot walk the grid of '{grids[0]}'; use tune.choice, or search=grid")
        if self.search == "grid" and not grids:
            raise UserError(f"{where}: search=grid needs a tune.grid_search parameter")
        if self.first and self.search == "grid":
            raise UserError(f"{where}: search=grid walks its grid and no points before it; leave out `first`")
        if strange := sorted({key for point in self.first for key in point} - set(self.parameters)):
            raise UserError(f"{where}: points of `first` name parameters that there are not: {', '.join(strange)}")
        if len(self.metrics) > 1 and self.scheduler != "none":
            raise UserError(f"{where}: {self.scheduler} compares trials by one metric; use scheduler=none for a front")
        if "latency" in self.metrics and self.scheduler != "none":
            raise UserError(f"{where}: latency is measured when a trial ends; use scheduler=none")
        if self.scheduler != "pbt":
            return
        if self.search != "random" or self.seeds > 1:
            raise UserError(f"{where}: pbt is its own search, one seed a member; use search=random and seeds=1")
        unknown = [key for key in self.mutable if not isinstance(self.parameters.get(key), Domain)]
        if unknown or not self.mutable:
            raise UserError(f"{where}: pbt needs `mutable` parameters with a Tune domain{_named(unknown)}")

    @property
    def metric(self) -> str:
        """The first metric: what schedulers and tables go by."""
        return next(iter(self.metrics))

    @property
    def mode(self) -> Mode:
        return self.metrics[self.metric]

    def changed(self, **options: Any) -> "Space":
        """A copy with some options replaced (and checked again)."""
        return replace(self, **options)


def is_grid(domain: Any) -> bool:
    """True for `tune.grid_search(...)`."""
    return isinstance(domain, dict) and set(domain) == {"grid_search"}


def shipped_spaces() -> list[Space]:
    """The spaces of `tune_spaces`, by name."""
    import tune_spaces

    names = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
    return [load_space(name) for name in names]


def load_space(name: str) -> Space:
    """The space called `name`, or the one in the Python file at path `name`, which is executed.

    Raises `UserError` when there is none, when the file cannot be run, or when it defines no `space`.
    """
    if name.endswith(".py"):
        module = _from_file(Path(name))
    else:
        module = _shipped(name)
    space = getattr(module, "space", None)
    question = " ".join((module.__doc__ or "").split())
    if not isinstance(space, Space):
        raise UserError(f"{name} defines no `space = Space(...)`; see tune_spaces/sampling.py for the shape")
    if not question:
        raise UserError(f"{name} has no docstring; say in its first lines which question the sweep answers")
    return replace(space, name=Path(name).stem, question=question)


def _shipped(name: str) -> ModuleType:
    import tune_spaces

    names = sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
    if name not in names:
        raise UserError(f"there is no space '{name}'; shipped: {', '.join(names)}; or give the path of a .py file")
    return importlib.import_module(f"tune_spaces.{name}")


class _LeavesNothing(SourceFileLoader):
    """Reading somebody's file makes no `__pycache__` beside it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass


def _from_file(path: Path) -> ModuleType:
    name = f"mlpt_space_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_LeavesNothing(name, str(path)))
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"there is no file {path}; give a space's name (mlpt tune --list) or the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's own code: whatever it raises is theirs to read in one line
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _named(keys: list[str]) -> str:
    return f"; not one: {', '.join(keys)}" if keys else ""
