"""Going on with a run: what may be set anew, whether there is something to go on from, and what is finished already."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlpt.config import RunConfig
from mlpt.data.manifest import read_manifest
from mlpt.errors import UserError, pretrain_command, resume_command
from mlpt.reporting.boards import RECORDS as BOARDS
from mlpt.reporting.history import REPORT
from mlpt.run.folder import CONFIG, RunDir, remembered_blocks
from mlpt.settings import load_settings, merge
from mlpt.storage.checkpoint import write_whole
from mlpt.storage.mirror import run_checkpoints
from mlpt.storage.store import Store
from mlpt.training.schedule import learning_rate

SUMMARY = "summary.json"

# Where and how a run is watched changes nothing that is computed. The rest changes the steps to come: their number, and
# what helps a run that has diverged. It is written into config.yaml, with the step from which it counts.
_ANYTIME = ("runtime", "report")
_FROM_HERE = (
    "train.steps",
    "train.tokens",
    "train.on_nonfinite",
    "train.nonfinite_limit",
    "train.clip",
    "train.precision",
    "train.optimizer.lr",
    "train.schedule.length",
)
_LEFT_BEHIND = (
    *("checkpoints", "metrics.jsonl", SUMMARY, REPORT, "policies", "masks", "samples", "model", "tensorboard"),
    *(BOARDS, "wandb"),
)


def summary_of(run: RunDir, config: RunConfig) -> dict[str, Any] | None:
    """What the run said at its end, if it has all of `config`'s steps and its model is still there."""
    if run.remote is None:
        file = run.folder / SUMMARY
        text = file.read_bytes() if file.is_file() else None
        has_model = (run.folder / "model" / "config.json").is_file()
    else:
        store = Store(run.remote.uri)
        text = store.read(SUMMARY)
        has_model = text is not None and "config.json" in store.names("model")
    try:
        summary = json.loads(text or b"null")
        done = bool(summary) and summary["steps"] >= config.train.total_steps(summary["block_size"])
    except (ValueError, KeyError, TypeError):
        return None  # damaged, or of another version: the run itself knows how far it is
    return summary if done and has_model else None


def newest_step(run: RunDir, config: RunConfig, restart: bool) -> int:
    """The step of the checkpoint to go on from; 0 with `restart`. Raises `UserError` when there is none."""
    if restart:
        return 0
    step = run_checkpoints(run.folder, config.train.keep, run.remote, lambda text: None).newest()
    if step is None and (run.folder / "model" / "config.json").is_file():
        from_model = pretrain_command(f"model.pretrained={run.name}/model")
        raise UserError(
            f"{run.name} has its model and no checkpoint to go on from; begin a new run from the model: `{from_model} "
            "...`"
        )
    if step is None:
        raise UserError(
            f"{run.name} has no checkpoint to go on from: it stopped before the first one, or they were removed; begin "
            f"it again by `{resume_command(run.name, '--restart')}`"
        )
    return step


def with_settings(run: RunDir, config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """`config` with nested `settings` laid on it. Raises `UserError` for what cannot change in the middle of a run."""
    load_settings(RunConfig, merge(config.model_dump(), settings))  # what is no setting at all is said first
    given = _dotted(settings)
    for key in given:
        if key.split(".")[0] not in _ANYTIME and key not in _FROM_HERE:
            new_run = pretrain_command(f"{run.name}/{CONFIG}", "run_dir=NEW", f"{key}={given[key]}")
            raise UserError(
                f"{key} cannot change in the middle of a run; --resume takes runtime.*, report.* and "
                f"{', '.join(_FROM_HERE)}; for all else begin a new run by `{new_run}`"
            )
    if {"train.steps", "train.tokens"} <= given.keys():
        raise UserError("train.steps and train.tokens both say how long to train; give one of them")
    if "train.steps" in given:  # a budget in tokens would win over it
        settings = merge(settings, {"train": {"tokens": None}})
    changed = load_settings(RunConfig, merge(config.model_dump(), settings))
    before, now = (each.train.total_steps(_block_size(run, config)) for each in (config, changed))
    if now < before:
        raise UserError(f"--resume can only make a run longer: it has {before:,} steps and would have {now:,}")
    return changed


def say_what_changes(run: RunDir, before: RunConfig, now: RunConfig, step: int, say: Callable[[str], None]) -> None:
    """Say what the settings that count from `step` on do, and write them into the run's config.yaml."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    changes = {key: (_at(old, key), _at(new, key)) for key in _FROM_HERE if _at(old, key) != _at(new, key)}
    if not changes:
        return
    for key, (earlier, value) in changes.items():
        say(f"{key}={value} from step {step:,} on (before: {earlier})")
    steps = [each.train.total_steps(_block_size(run, before)) for each in (before, now)]
    rates = [
        learning_rate(each.train.schedule, step, total, each.train.optimizer.lr)
        for each, total in zip((before, now), steps, strict=True)
    ]
    length = now.train.schedule.length
    if length is not None and steps[1] > length:
        end = learning_rate(now.train.schedule, length, steps[1], now.train.optimizer.lr)
        say(
            f"the learning rate keeps to the schedule of train.schedule.length={length}: from step {length:,} on it is "
            f"{end:.3g}; train.schedule.length=null makes the schedule that of {steps[1]:,} steps"
        )
    elif rates[0] != rates[1]:
        say(
            f"the learning rate follows the schedule ({now.train.schedule.shape}) of a run of {steps[1]:,} steps: at "
            f"step {step:,} it is {rates[1]:.3g}, and would have been {rates[0]:.3g}"
        )
    text = (run.folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    notes = [line for line in text.splitlines() if line.startswith("#")]
    notes += [f"# from step {step} on: {key}={value} (before: {earlier})" for key, (earlier, value) in changes.items()]
    # Only what counts from here on: where the run runs is not part of what repeats it.
    kept = before.model_copy(update={"train": now.train})
    write_whole(run.folder / CONFIG, "".join(f"{line}\n" for line in notes).encode() + kept.to_yaml().encode())
    run.send(CONFIG)


def begin_again(run: RunDir) -> RunDir:
    """Remove what the run has made, but for its configuration and logs; the run in its first state."""
    return run.emptied(_LEFT_BEHIND)


def _block_size(run: RunDir, config: RunConfig) -> int:
    """Tokens in a block of the run: of its prepared blocks, or as it is set where it never had any."""
    remembered = remembered_blocks(run.folder)
    manifest = None if remembered is None else read_manifest(remembered["blocks"])
    return config.data.block_size if manifest is None else manifest.block_size


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"steps": 9}}` as `{"train.steps": 9}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= _dotted(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found
