"""What a run can end with; the command line turns each into one sentence and its exit code."""


class Refused(ValueError):  # noqa: N818 (it reads as what happened to the request)
    """The request cannot be carried out as given (exit 2): says why, with the numbers and the mend."""


class Failed(RuntimeError):  # noqa: N818
    """The run could not go on (exit 1): says where and at which step."""
