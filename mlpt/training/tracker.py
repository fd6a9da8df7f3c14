"""The run's figures: `metrics.jsonl`, TensorBoard and the versions of the policy. Rank 0 writes them."""

import json
import os
from pathlib import Path
from typing import Any

from mlpt.meta.policy import Policy


class Tracker:
    """Appends one JSON object a line to `metrics.jsonl`; numbers also go to TensorBoard.

    A resumed run first cuts the file back to where it was at the checkpoint, so that everything stands in it once.
    """

    def __init__(self, run_dir: Path, resumed_at: int, position: int, tensorboard: bool = True):
        self.run_dir = run_dir
        self._file = open(run_dir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (closed by `close`)
        if os.path.getsize(run_dir / "metrics.jsonl") > position:
            self._file.truncate(position)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_at or None)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record `values` of `step`; nested mappings of numbers become `a/b` in TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, number in _flat(values):
                self._board.add_scalar(name, number, step)

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
        if self._board is not None:
            self._board.close()


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat.append((f"{prefix}{name}", float(value)))
    return flat


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`, oldest first."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
