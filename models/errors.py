"""Errors that a user can act on. Their text names the file or flag, what was found and what was expected."""


class RunnerError(Exception):
    """A fault in the input or the machine, told in one or two lines; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(RunnerError):
    """The call itself is wrong (flags, prompt, unknown model name): exit code 2."""

    exit_code = 2


class LoadError(RunnerError):
    """A model source cannot be read as what it claims to be: the text starts with the file's path."""
