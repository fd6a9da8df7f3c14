"""Errors for people: one line that says what is wrong and what to do."""


class UserError(Exception):
    """Something that whoever runs mlpt can put right: bad input, a bad setting, a full disk.

    The command line prints the text as one line and exits with code 2; `--debug` shows the traceback.
    """
