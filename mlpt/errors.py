"""Errors for people: one line that says what is wrong and what to do."""

import shlex


class UserError(Exception):
    """Something that whoever runs mlpt can put right: bad input, a bad setting, a full disk.

    The command line prints the text as one line and exits with code 2; `--debug` shows the traceback.
    """


def pretrain_command(*words: str) -> str:
    """`mlpt pretrain WORDS`, quoted for a shell."""
    return shlex.join(["mlpt", "pretrain", *words])


def resume_command(run: str, *words: str) -> str:
    """The command that goes on with the run in the folder or at the URI `run`, quoted for a shell."""
    return pretrain_command("--resume", run, *words)
