"""What a run says of itself: `metrics.jsonl`, the boards, the versions of the policy, events, seconds."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from mlpt.logs import Event
from mlpt.meta.policy import Policy
from mlpt.reporting.boards import Boards
from mlpt.training.group import Group
from mlpt.training.stopwatch import Stopwatch


class Tracker:
    """Appends one JSON object a line to `metrics.jsonl`; numbers also go to `boards`. Rank 0 alone writes and tells.

    A resumed run first cuts the file back to where it was at the checkpoint, so that everything stands in it once.

    training  seconds of steps and of what is due between them; `busy`: also of evaluations before and after. Both are
              of the whole run, over all resumes.
    """

    def __init__(
        self,
        run_dir: Path,
        group: Group,
        tell: Callable[[Event], None] = lambda event: None,
        boards: Boards | None = None,
    ):
        self.run_dir, self._leads, self._boards = run_dir, group.leads, boards
        self.tell = tell if group.leads else lambda event: None
        self.training, self.busy = Stopwatch(), Stopwatch()
        self._file: TextIO | None = None
        self._position, self._finished = 0, False

    def open(self, resumed_at: int) -> None:
        """The run begins, or goes on at a step."""
        if not self._leads:
            return
        if self._boards is not None:
            self._boards.open(self.run_dir, resumed_at, self.warn)
        self._file = open(self.run_dir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (closed by `close`)
        if os.path.getsize(self.run_dir / "metrics.jsonl") > self._position:
            self._file.truncate(self._position)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record `values` of `step`."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._finished = self._finished or "held_out" in values  # measured when training is over
        if self._boards is not None:
            self._boards.add(step, values)

    def warn(self, text: str) -> None:
        """Tell people, in a line."""
        self.tell({"event": "warning", "text": text})

    def policy(self, policy: Policy, step: int) -> None:
        """Keep version `policy.version`, adopted at `step`, and make it the latest in `mixture.json`."""
        if self._file is None:
            return
        folder = self.run_dir / "policies"
        folder.mkdir(exist_ok=True)
        text = json.dumps({**json.loads(policy.to_json()), "adopted_at_step": step})
        (folder / f"policy_{policy.version:06d}.json").write_text(text)
        partial = folder / ".mixture.json.partial"
        partial.write_text(text)
        os.replace(partial, folder / "mixture.json")

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the bytes of `metrics.jsonl` so far, and seconds."""
        assert self._file is not None
        self._file.flush()
        seconds = [self.training.seconds, self.busy.seconds]
        return {"metrics_bytes": os.path.getsize(self.run_dir / "metrics.jsonl"), "seconds": seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`; before `open`."""
        self._position = state["metrics_bytes"]
        self.training.seconds, self.busy.seconds = state["seconds"]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            if self._boards is not None:
                self._boards.close(self._finished)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`, oldest first."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
