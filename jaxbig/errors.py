"""The two errors that end a command: the command line prints each as one sentence."""


class Refused(ValueError):
    """The request is invalid (exit code 2). The message gives the values and a fix."""


class Failed(RuntimeError):
    """The run failed (exit code 1). The message gives the cause and the step."""
