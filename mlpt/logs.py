"""One plain log file for each rank and actor, in the run's `logs/`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]  # plain JSON values: what training tells whoever shows or logs it


class _LogFile(logging.FileHandler):
    """A log file that cannot be written is no reason for tracebacks on the terminal: whoever trains meets the full disk
    too, and says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        pass


def log_to_file(path: Path) -> None:
    """Send everything that mlpt logs in this process to `path`, appended, with times, from now on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mlpt")
    for old in logger.handlers:
        if isinstance(old, _LogFile):
            old.close()
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def logging_to_file(path: Path) -> Iterator[None]:
    """`log_to_file` for the block: afterwards the calling program's logging is what it was."""
    logger = logging.getLogger("mlpt")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    log_to_file(path)
    try:
        yield
    finally:
        logger.handlers[0].close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def quiet_libraries() -> None:
    """No progress bars and no chatter of libraries between our own lines."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging  # takes seconds to import

    transformers_logging.disable_progress_bar()
