"""`python -m mlpt.studies.attached WORDS`: `mlpt WORDS` as a part of the process that started it and holds its input.

However that process ends, by a SIGKILL too, its end of the pipe closes, and this one goes, with all it started.
"""

import os
import signal
import threading


def main() -> None:
    """Run the command line until it ends, or until standard input does."""
    threading.Thread(target=_end_with_input, name="attached", daemon=True).start()
    from mlpt.cli import main as mlpt

    mlpt()


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
