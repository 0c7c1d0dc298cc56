"""Standard output and error that outlive their reader: `jaxbig train NAME | head` trains to its end."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = errno.EPIPE, errno.EIO
"""What writing to a pipe without a reader, or to a terminal that is closed, ends in."""


class Stream(io.FileIO):
    """A file descriptor that discards what is written once nobody can read it any more; it is never closed."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for libraries that write there by themselves, too
            os.close(null)
            return len(data)


def pipe_safe(stream: TextIO, descriptor: int | None = None) -> TextIO:
    """Text to a stream's descriptor, or to another, in its encoding; characters that this lacks are escaped."""
    at_once = getattr(
        stream, "write_through", False
    )  # standard error, whose lines nobody is to wait for
    binary = io.BufferedWriter(Stream(stream.fileno() if descriptor is None else descriptor))
    return io.TextIOWrapper(
        binary,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=descriptor is not None or bool(stream.line_buffering) or at_once,
        write_through=at_once,
    )


def install_pipe_safe_streams() -> None:
    """Replaces this process's own standard output and error; those that something else has put there stay."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            setattr(sys, name, pipe_safe(stream))
