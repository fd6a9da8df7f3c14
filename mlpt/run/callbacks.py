"""What a caller's own code hears of a run while it trains, and how it asks for a checkpoint or for the end.

In a run of one process (`runtime.num_workers=0`) a callback is called between two steps. On Ray it is called in a
thread of the driver, some tenths of a second later, and can end the run, but not ask for a checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from mlpt.errors import UserError
from mlpt.logs import Event
from mlpt.stopping import StopRequest


class StepEvent(TypedDict):
    """The figures that a run logs every `train.log_every` steps.

    loss                mean training loss in nats since the last such event, by arm, of the arms that were drawn.
    mixture             probability of each arm.
    tokens              trained on so far.
    tokens_per_second   since the last such event.
    data_share          part of that time that went into making batches.
    peak_bytes          most memory that rank 0, or its GPU, has held so far.
    meta_stall_seconds  spent waiting for the meta-learner, so far.
    """

    event: str
    step: int
    steps: int
    tokens: int
    loss: dict[str, float]
    mixture: dict[str, float]
    learning_rate: float
    tokens_per_second: float
    data_share: float
    peak_bytes: int
    meta_stall_seconds: float
    skipped_steps: NotRequired[int]


class EvaluationEvent(TypedDict):
    """Held-out losses `dev` in nats by arm, every `train.evaluate_every` steps."""

    event: str
    step: int
    dev: dict[str, float]


class PolicyEvent(TypedDict):
    """A policy that training has adopted: its version, the mixture that is now in force, and the learner's figures."""

    event: str
    step: int
    policy: int
    mixture: dict[str, float]
    meta: dict[str, Any]


class Control:
    """What a callback may ask of the run that called it."""

    def __init__(self, stop: StopRequest, in_process: bool):
        self._stop, self._in_process = stop, in_process
        self.wants_checkpoint = False

    def checkpoint(self) -> None:
        """Write a checkpoint of the step that this event is about. Raises `UserError` in a run on Ray."""
        if not self._in_process:
            raise UserError(
                "a callback can ask for checkpoints in runs of one process only: set runtime.num_workers=0, or "
                "train.checkpoint_every"
            )
        self.wants_checkpoint = True

    def stop(self) -> None:
        """End the run with a checkpoint after the step that is next; on Ray after the one it is at by then."""
        self._stop.ask()


class Callback:
    """Derive from it, and override what you want to hear. An exception that a method raises ends the run with a
    checkpoint, and comes out of `mlpt.pretrain` then."""

    def on_step(self, event: StepEvent, control: Control) -> None:
        """Called every `train.log_every` steps."""

    def on_evaluation(self, event: EvaluationEvent, control: Control) -> None:
        """Called after each evaluation on held-out text (`train.evaluate_every`)."""

    def on_policy(self, event: PolicyEvent, control: Control) -> None:
        """Called when training has adopted a new policy."""


class Listeners:
    """Hands the events of one run to its callbacks, and what they ask to the run.

    run    the folder or URI, once it is known.
    error  what a callback raised: the run ends, and the caller raises it again.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()):
        self._callbacks = list(callbacks)
        self._control: Control | None = None
        self._stop: StopRequest | None = None
        self.run: str | None = None
        self.error: Exception | None = None

    def begin(self, run: str, stop: StopRequest, in_process: bool) -> None:
        """The run is about to train."""
        self.run, self._stop, self._control = run, stop, Control(stop, in_process)

    def tell(self, event: Event) -> None:
        """One event of the loop."""
        control = self._control
        name = {"step": "on_step", "evaluation": "on_evaluation", "policy": "on_policy"}.get(event["event"])
        if name is None or control is None or self.error is not None:
            return
        for callback in self._callbacks:
            method: Callable[[Any, Control], None] = getattr(callback, name)
            try:
                method(dict(event), control)
            except Exception as error:
                self.error = error
                control.stop()
                return

    def must_save(self, step: int) -> bool:
        """Whether a callback has asked for a checkpoint since the last time."""
        wanted = self._control is not None and self._control.wants_checkpoint
        if self._control is not None:
            self._control.wants_checkpoint = False
        return wanted

    @property
    def has_stopped(self) -> bool:
        """True if a callback, and no signal, has ended the run."""
        return self._stop is not None and self._stop() and not self._stop.signalled
