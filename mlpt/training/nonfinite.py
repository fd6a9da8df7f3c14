"""Steps whose loss or gradient is not finite: seen by all ranks together, then left out, or the end of the run.

Such a step is never taken, so the weights stay as they were before it. Training in float16 overflows now and then until
its loss scale fits (Micikevicius et al., 2018, section 3.2); those steps are always left out, and count alike.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from mlpt.errors import UserError, resume_command
from mlpt.models.sharded import is_part, local, norm_and_clip
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group


def gradient_norm(parameters: Iterable[Tensor], clip: float) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on the device, before they are clipped to `clip` (0: not)."""
    parameters = list(parameters)
    if any(is_part(one) for one in parameters):
        return norm_and_clip([one.grad for one in parameters if one.grad is not None], clip)
    if clip:
        return torch.nn.utils.clip_grad_norm_(parameters, clip)
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])


class NonfiniteSteps:
    """Looks at every step before it is taken, and counts those that are left out.

    run         the run's folder or URI, for the advice.
    saved_step  the step of the newest checkpoint, None without one; asked on every rank, and rank 0's counts.
    warn        told of the first left-out step in a row.
    """

    def __init__(
        self,
        config: TrainConfig,
        group: Group,
        run: str,
        saved_step: Callable[[], int | None],
        warn: Callable[[str], None],
    ):
        self.config, self.group, self.run = config, group, run
        self.skipped = 0
        self.in_a_row = 0
        self._norm: Tensor | None = None
        self._saved_step, self._warn = saved_step, warn

    def examine(self, step: int, norm: Tensor, losses: Mapping[str, Tensor], wish: bool) -> tuple[bool, bool]:
        """Whether step `step` may be taken, and whether some rank has a `wish`: one exchange, every rank must join it.

        norm    of the gradient, on the device.
        losses  of this rank in this step, by objective, on the device.
        Raises `UserError` when the run shall stop, or more than `nonfinite_limit` steps in a row were left out.
        """
        self._norm = norm
        sound = torch.isfinite(torch.stack([norm.double(), *losses.values()])).all()
        broken, wished = self.group.any(~sound, wish)
        if not broken:
            self.in_a_row = 0
            return True, wished
        self.skipped += 1
        self.in_a_row += 1
        what = f"{self._culprit(losses)} at step {step}"
        scaled = self.config.precision == "fp16"
        if self.in_a_row > self.config.nonfinite_limit:
            earlier = f"{what} and the {self.config.nonfinite_limit} before it, which were left out"
            raise UserError(f"{earlier}; {self._advice(self._lower_rate)}")
        if self.config.on_nonfinite == "stop" and not scaled:
            raise UserError(f"{what}; {self._advice('train.on_nonfinite=skip')}, or lower train.optimizer.lr")
        if self.in_a_row == 1 and not scaled:
            self._warn(f"{what}; it is left out")
        return False, wished

    def check_weights(self, step: int, parameters: Iterable[Tensor]) -> None:
        """Raise `UserError` where weights are not finite: they must not become a checkpoint. Every rank must join."""
        broken = torch.stack([~torch.isfinite(local(one)).all() for one in parameters]).any()
        if self.group.any(broken)[0]:
            raise UserError(f"the weights are not finite after {step} steps; {self._advice(self._lower_rate)}")

    def figures(self) -> dict[str, float | int | None]:
        """For the log: the last step's gradient norm before clipping (None if not finite), and the steps left out."""
        norm = math.nan if self._norm is None else self._norm.item()
        return {"gradient_norm": norm if math.isfinite(norm) else None, "skipped_steps": self.skipped}

    def state(self) -> list[int]:
        """For a checkpoint."""
        return [self.skipped, self.in_a_row]

    def load_state(self, state: list[int]) -> None:
        """Go on from `state()`."""
        self.skipped, self.in_a_row = state

    @property
    def _lower_rate(self) -> str:
        return f"train.optimizer.lr={self.config.optimizer.lr / 2:g}"

    def _culprit(self, losses: Mapping[str, Tensor]) -> str:
        named = self.group.gather({name: not bool(torch.isfinite(loss)) for name, loss in losses.items()})
        found = sorted({name for of_rank in named for name, one in of_rank.items() if one})
        return f"the {found[0]} loss is not finite" if found else "the gradient is not finite, though every loss is,"

    def _advice(self, setting: str) -> str:
        saved_step = self.group.share(self._saved_step())
        if saved_step is None:
            return f"there is no checkpoint yet: begin again by `{resume_command(self.run, '--restart', setting)}`"
        return f"go on from the checkpoint of step {saved_step} by `{resume_command(self.run, setting)}`"
