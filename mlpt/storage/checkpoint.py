"""Atomic checkpoints: all of a run's state, or none of it.

A checkpoint is a folder `step_00000100` of safetensors and JSON files; nothing in it is a pickle. `COMMITTED` is
written last and lists the size and BLAKE2b digest of every other file, so a torn or damaged checkpoint is told from a
good one, and the one before it is used instead.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mlpt.errors import UserError, resume_command
from mlpt.storage.memory import aligned
from mlpt.storage.store import StorageError

T = TypeVar("T")
COMMITTED = "COMMITTED"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One restored checkpoint: plain JSON `state` and tensors by file stem ("model", "optimizer", ...), on the CPU.

    mark  digest of the list of files and digests: checkpoints with equal marks are equal.
    """

    path: Path
    step: int
    mark: str
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class Checkpoints:
    """The `checkpoints/` folder of one run: keeps the last `keep` and the best, and writes in the background.

    begin_again  what to do where none is any good, for people; None: the command that begins a pretraining again.
    """

    def __init__(self, folder: Path, keep: int = 3, begin_again: str | None = None):
        self.folder = folder
        self.keep = keep
        self.run = str(folder.parent)  # what people call the run by
        self._begin_again = begin_again
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], best: bool = False
    ) -> None:
        """Write checkpoint `step`; `best` ones outlive their age, until the next best.

        Tensors are copied now, the files are written by a thread while training goes on.
        Raises `UserError` for what went wrong with the save before this one, such as a full disk.
        """
        self.wait()
        copied = {stem: {name: _copy(tensor) for name, tensor in named.items()} for stem, named in tensors.items()}
        text = json.dumps({**state, "step": step}, indent=1)
        self._writer = threading.Thread(target=self._write, args=(step, text, copied, best), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return when no write is under way; raise what stopped the last one."""
        self.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def join(self) -> None:
        """Return when no write is under way, however it went."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending. Damage inside them shows only when they are loaded."""
        return sorted(
            int(path.name.removeprefix("step_"))
            for path in self.folder.glob("step_*")
            if (path / COMMITTED).is_file() and path.name.removeprefix("step_").isdigit()
        )

    def known_steps(self) -> list[int]:
        """Steps that `load` can be asked for, ascending."""
        return self.steps()

    def has_any(self) -> bool:
        """Whether there is anything to go on from; True, too, where that cannot be told."""
        try:
            return bool(self.steps() or self.known_steps()) or self.folder.is_file()  # a file is in the way: what of?
        except (StorageError, OSError):
            return True

    def way_on(self, *words: str) -> str:
        """The command, with `words`, that goes on with the run: at step 0 again where there is no checkpoint."""
        return resume_command(self.run, *words) if self.has_any() else resume_command(self.run, "--restart", *words)

    def path(self, step: int) -> Path:
        return self.folder / step_name(step)

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is whole; None if there are none at all.

        Raises `UserError` when all are damaged.
        """

        def whole(step: int) -> int:
            _verify(self.path(step))
            return step

        return self._newest(whole, lambda text: None)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; `say` is told of each damaged one passed over. None if there are none.

        Raises `UserError` when all are damaged: to begin at step 0 then would overwrite what can still be looked into.
        """
        return self._newest(self.load, say)

    def _newest(self, get: Callable[[int], T], say: Callable[[str], None]) -> T | None:
        steps = self.known_steps()
        for step in reversed(steps):
            try:
                return get(step)
            except StorageError:
                raise  # it says nothing about the checkpoint
            except UserError as error:
                if step == steps[0]:
                    raise UserError(f"{error}; there is none to fall back to: {self.begin_again}") from error
                say(f"{error}; falling back to the checkpoint before it")
        return None

    @property
    def begin_again(self) -> str:
        """What to do, for people, where none is any good."""
        return self._begin_again or f"begin again by `{resume_command(self.run, '--restart')}`"

    def load(self, step: int, mark: str | None = None) -> Checkpoint:
        """Checkpoint `step`, verified against its digests and, if given, against its mark.

        Raises `UserError` when a file is missing or damaged.
        """
        checkpoint = read_checkpoint(self.path(step), step)
        if mark not in (None, checkpoint.mark):
            raise UserError(f"checkpoint {checkpoint.path} is not the one that rank 0 goes on from")
        return checkpoint

    def finish(self) -> None:
        """Called when all of the run is written: here it already lies where it belongs."""

    def best(self) -> int | None:
        """The step marked best, or None."""
        file = self.folder / "best.json"
        return int(json.loads(file.read_text())["step"]) if file.is_file() else None

    def _write(self, step: int, state: str, tensors: Mapping[str, Mapping[str, Tensor]], best: bool) -> None:
        final = self.path(step)
        partial = self.folder / f".partial_{step:08d}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            contents = {f"{stem}.safetensors": save(dict(named)) for stem, named in tensors.items() if named}
            contents[_STATE] = state.encode()
            for name, content in contents.items():
                _write_synced(partial / name, content)
            listing = {name: [len(content), _digest(content)] for name, content in contents.items()}
            _write_synced(partial / COMMITTED, json.dumps({"files": listing}).encode())
            if final.exists():  # the same step reached again after a resume: identical by construction
                shutil.rmtree(final)
            os.replace(partial, final)
            _sync_folder(self.folder)
            if best:
                write_whole(self.folder / "best.json", json.dumps({"step": step}).encode())
            self._forget_old()
            self.after_commit(step)
        except OSError as error:
            self._failure = UserError(_why_unwritable(final, error))
        except Exception as error:  # carried to the training thread, which raises it
            self._failure = error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def after_commit(self, step: int) -> None:
        """Called by the writing thread when checkpoint `step` is whole."""

    def _forget_old(self) -> None:
        best = self.best()
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(self.path(step), ignore_errors=True)


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step_{step:08d}"


def read_checkpoint(path: Path, step: int) -> Checkpoint:
    """The checkpoint in folder `path`. Raises `UserError` when a file of it is missing or damaged."""
    listing = _verify(path)
    with _readable(path):
        state = json.loads((path / _STATE).read_text())
        files = sorted(path.glob("*.safetensors"))
        tensors = {file.stem: {key: aligned(one) for key, one in load_file(file).items()} for file in files}
    return Checkpoint(path, step, _digest(listing), state, tensors)


def _verify(path: Path) -> bytes:
    """The list of files and digests of the checkpoint in `path`, once every file is known to be what was written."""
    with _readable(path):
        listing = (path / COMMITTED).read_bytes()
        for name, (size, digest) in json.loads(listing)["files"].items():
            if (path / name).stat().st_size != size or _digest((path / name).read_bytes()) != digest:
                raise UserError(f"checkpoint {path} is damaged: {name} is not what was written")
    return listing


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error})") from error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write_synced(partial, content)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_unwritable(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no room to write checkpoint {path} ({error.strerror}); free some space and resume, nothing before is lost"
        )
    return f"cannot write checkpoint {path} ({error.strerror or error}); mend it and resume, nothing before is lost"
