"""The one error that a command answers with one line."""


class UsageError(Exception):
    """Something the user asked for can't be done; the message is one line that says what and how to mend it.

    The command line prints it after "minitrainer.trace: " and exits with status 2. `--debug` shows the stack as well.
    """
