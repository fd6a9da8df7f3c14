"""One plain log file for each rank and actor, in the run's `logs/`."""

import logging
from pathlib import Path


def log_to_file(path: Path) -> None:
    """Send everything that mlpt logs in this process to `path`, appended, with times; replaces an earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mlpt")
    for old in logger.handlers:
        old.close()
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def quiet_libraries() -> None:
    """No progress bars and no chatter of libraries between our own lines."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging  # takes seconds to import

    transformers_logging.disable_progress_bar()
