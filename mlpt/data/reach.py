"""Asking the Hugging Face hub once whether it is there, before its libraries ask six times with growing pauses."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlpt.errors import UserError
from mlpt.storage.files import one_line

PATIENCE_S = 5.0  # for an answer of the hub, whatever it says


@contextmanager
def hub_lookup(name: str | os.PathLike[str], shown: str | None = None) -> Iterator[None]:
    """Load `name`, a hub name or a local path, within this block; errors call it `shown`.

    Out of the hub's reach its libraries are put into their offline mode for the block: what is cached is found at once,
    and for what is not the block's error becomes one UserError line. A local path changes nothing.
    """
    unreachable = None if is_path(os.fspath(name)) else _unreachable()
    if unreachable is None:
        yield
        return
    with _offline():
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"cannot load {shown or os.fspath(name)}: the hub cannot be reached ({unreachable}), and neither its "
                "cache nor a local path has it; check the network or give local files"
            ) from error


def is_path(name: str) -> bool:
    """True for what is there, and for what no hub name looks like: those have at most one slash, and none in front."""
    return os.path.exists(os.path.expanduser(name)) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _unreachable() -> str | None:
    """Why the hub does not answer; None if it does, or if the user has set the offline mode."""
    from huggingface_hub import constants, get_session  # slow to import

    if constants.is_offline_mode():
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_S)
    except Exception as error:  # of whichever HTTP client the library uses
        return one_line(error)
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """The libraries' own switch, which they read from the environment when they are imported."""
    modules = [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
