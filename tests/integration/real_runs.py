"""Real runs through the command line, and what tests do to them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = ["data.vocab_size=300", "data.block_size=32"]  # for text that is not prepared yet
TINY = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "objectives.cse=null",
    "train.batch_size=8",
    "train.evaluate_batches=2",
    "train.log_every=10",
    "report.tensorboard=false",
    "meta.interval=10",
    "meta.lag=5",
]


class Mlpt:
    """The command line as a user has it."""

    def __init__(self, folder, cache):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(cache),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._started = []

    def start(self, *words, **popen):
        log = open(self.folder / f"output-{len(self._started)}.txt", "w+")  # noqa: SIM115 (closed with the process)
        process = subprocess.Popen(
            [sys.executable, "-m", "mlpt", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **popen,
        )
        self._started.append((process, log))
        return process

    def run(self, *words, timeout=600):
        process = self.start(*words)
        process.wait(timeout=timeout)
        return process.returncode, self.output()

    def output(self):
        """What the last process said so far."""
        return Path(self._started[-1][1].name).read_text()

    def close(self):
        for process, log in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.close()


def metrics_of(run_dir):
    """The lines of metrics.jsonl; one that is being written is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]


def kill_the_process_that_writes(path):
    """SIGKILL whoever has `path` open: the worker in which the trial trains."""

    def writers():
        found = []
        for process in psutil.process_iter():
            try:
                if any(opened.path == str(path) for opened in process.open_files()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    for process in wait_until(writers, timeout=30):
        process.kill()
