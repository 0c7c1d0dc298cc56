"""What a run can end with; the command line turns each into one sentence and its exit code."""

PEER_LOST = 69
"""Exit code of a process that stops because another process of its run ended: the fault is not its own."""


class Refused(ValueError):
    """The request cannot be carried out as given (exit 2): says why, with the numbers and the mend."""


class Failed(RuntimeError):
    """The run could not go on (exit 1): says where and at which step."""
