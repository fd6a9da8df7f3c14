"""The processes of a study: `mlpt` commands side by side, each with its threads, its log, and its share of the GPUs."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from mlpt.errors import UserError, one_line

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class FailedError(UserError):
    """A command has ended with an error; the text is the line it said."""


class Children:
    """Starts commands from several threads, and ends them all."""

    def __init__(self, threads: int, gpus: Sequence[str] = ()):
        self._environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
        self._gpus: queue.Queue[str] = queue.Queue()
        for gpu in gpus:
            self._gpus.put(gpu)
        self._has_gpus = bool(gpus)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, words: Sequence[str], log: Path) -> None:
        """`mlpt WORDS` from its begin to its end, told in `log`. Raises `FailedError`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        gpu = self._gpus.get() if self._has_gpus else None
        try:
            with open(log, "ab") as said:
                begun = said.tell()
                code = self._wait(words, said.fileno(), gpu)
        finally:
            if gpu is not None:
                self._gpus.put(gpu)
        if code:
            raise FailedError(_last_line(log, begun) or f"ended with exit code {code}; see {log}")

    def stop(self) -> None:
        """Ask all of them to end, with a checkpoint where they train; no other begins. `run` returns as they end."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    def _wait(self, words: Sequence[str], said: int, gpu: str | None) -> int:
        environment = self._environment if gpu is None else {**self._environment, "CUDA_VISIBLE_DEVICES": gpu}
        command = [sys.executable, "-m", "mlpt.studies.attached", *words]
        with self._lock:
            if self._stopped:
                raise FailedError("stopped")
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            if process.stdin is not None:
                process.stdin.close()


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES gives a process one GPU each."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(at) for at in range(torch.cuda.device_count())]


def _last_line(log: Path, begun: int) -> str:
    """What a command said at its end: its error if that is one line of ours, else the last line."""
    with open(log, "rb") as file:
        file.seek(begun)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("mlpt: ") for line in lines if line.startswith("mlpt: ")]
    return one_line((errors or lines or [""])[-1])
