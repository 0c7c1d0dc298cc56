"""Standard streams that outlive their reader: `jaxbig train NAME | head` trains to its end."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

NO_READER = (errno.EPIPE, errno.EIO)
"""Errors of a write to a pipe without a reader, or to a closed terminal."""


class Stream(io.FileIO):
    """A file descriptor that discards writes once it has no reader; it is never closed."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NO_READER:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for libraries that write to it directly, too
            os.close(null)
            return len(data)


def pipe_safe(stream: TextIO, descriptor: int | None = None) -> TextIO:
    """A text stream to the same descriptor that ignores a missing reader.

    Args:
      stream: its encoding is used; characters that it lacks are escaped.
      descriptor: another descriptor to write to.
    """
    at_once = getattr(stream, "write_through", False)  # true of standard error
    binary = io.BufferedWriter(Stream(stream.fileno() if descriptor is None else descriptor))
    return io.TextIOWrapper(
        binary,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=descriptor is not None or bool(stream.line_buffering) or at_once,
        write_through=at_once,
    )


def install_pipe_safe_streams() -> None:
    """Replaces standard output and error, unless other code has replaced them before."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            setattr(sys, name, pipe_safe(stream))
