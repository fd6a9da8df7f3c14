"""The run's figures: `metrics.jsonl`, the boards and the versions of the policy. Rank 0 writes them."""

import json
import os
from pathlib import Path
from typing import Any

from mlpt.meta.policy import Policy
from mlpt.reporting.boards import Boards


class Tracker:
    """Appends one JSON object a line to `metrics.jsonl`; numbers also go to `boards`, which are open.

    A resumed run first cuts the file back to where it was at the checkpoint, so that everything stands in it once.
    """

    def __init__(self, run_dir: Path, position: int, boards: Boards | None = None):
        self.run_dir, self._boards, self._finished = run_dir, boards, False
        self._file = open(run_dir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (closed by `close`)
        if os.path.getsize(run_dir / "metrics.jsonl") > position:
            self._file.truncate(position)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record `values` of `step`."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._finished = self._finished or "held_out" in values  # measured when training is over
        if self._boards is not None:
            self._boards.add(step, values)

    def position(self) -> int:
        """Bytes written to `metrics.jsonl` so far."""
        self._file.flush()
        return os.path.getsize(self.run_dir / "metrics.jsonl")

    def policy(self, policy: Policy, step: int) -> None:
        """Keep version `policy.version`, adopted at `step`, and make it the latest in `mixture.json`."""
        folder = self.run_dir / "policies"
        folder.mkdir(exist_ok=True)
        text = json.dumps({**json.loads(policy.to_json()), "adopted_at_step": step})
        (folder / f"policy_{policy.version:06d}.json").write_text(text)
        partial = folder / ".mixture.json.partial"
        partial.write_text(text)
        os.replace(partial, folder / "mixture.json")

    def close(self) -> None:
        self._file.close()
        if self._boards is not None:
            self._boards.close(self._finished)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`, oldest first."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
