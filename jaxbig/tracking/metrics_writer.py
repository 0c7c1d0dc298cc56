"""What a run leaves to be read: metrics.jsonl, TensorBoard's event files, run.json and summary.json."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed
from jaxbig.system.json_files import _copy_to_broken, to_json_text, write_atomically
from jaxbig.tracking.figures import optional

log = logging.getLogger("jaxbig")


class Metrics:
    """Writes `metrics.jsonl` (a line a log) and TensorBoard files of one run, from a step on.

    Lines beyond that step, written by a run that was killed before it could save, are taken out first: the
    steps will be made again, and a file holds each once. Of several processes one alone `writes`.
    """

    def __init__(self, workdir: Path, start: int, writes: bool = True):
        self.file, self.writes = workdir / "metrics.jsonl", writes
        self._board: Board | None = None
        if not writes:
            return
        kept = [line for line in read_metrics(workdir, keep_damaged=True) if line["step"] <= start]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        with _writing(self.file, start):
            self._stream = self.file.open("a")
        with optional("TensorBoard"):
            self._board = Board(workdir / "tensorboard", start)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: the step, the split, the values; a value that is no finite number is written as null."""
        if not self.writes:
            return
        with _writing(self.file, step):
            self._stream.write(to_json_text({"step": step, "split": split, **values}) + "\n")
            self._stream.flush()
        board, self._board = self._board, None  # one that fails once is not asked again
        with optional("TensorBoard has no more of this run"):
            if board is not None:
                board.write(step, split, values)
                self._board = board

    def close(self) -> None:
        """Gives the files back; every line was flushed when it was written."""
        if self.writes:
            with contextlib.suppress(OSError):
                self._stream.close()
        with optional("TensorBoard"):
            if self._board is not None:
                self._board.close()


class Board:
    """TensorBoard's event file of a run, from a step on; written without a thread, which could die unseen."""

    def __init__(self, folder: Path, start: int):
        from tensorboardX import (
            summary,
        )  # here: it looks for the libraries of clouds, which a launcher has no need of
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        session = event_pb2.SessionLog  # type: ignore[attr-defined]
        self._scalar, self._event = summary.scalar, event_pb2.Event  # type: ignore[attr-defined]
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.write_event(
            self._event(step=start + 1, session_log=session(status=session.START))
        )

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            told = self._scalar(f"{split}/{name}", value)
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=told))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _writing(file: Path, step: int) -> Any:
    try:
        yield
    except OSError as error:
        raise Failed(f"step {step}: cannot write {file}: {error.strerror or error}.") from error


def read_metrics(workdir: Path, keep_damaged: bool = False) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off by a kill is left out.

    So is a line that is none of jaxbig's, as a power loss or an editor leaves it, with a warning that numbers it;
    keep_damaged: then the whole file is copied to `broken/` first, since it is about to be written again.
    """
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    content = file.read_bytes()
    texts = content.decode(errors="replace").split("\n")[
        :-1
    ]  # what follows the last newline is cut off or nothing
    lines = {number: _metrics(text) for number, text in enumerate(texts, 1) if text}
    if damaged := [number for number, line in lines.items() if line is None]:
        which = f"line{'s' * (len(damaged) > 1)} {', '.join(map(str, damaged[:5]))}{', ...' * (len(damaged) > 5)}"
        copy = f"; the file is copied to {_copy_to_broken(file, content)}" if keep_damaged else ""
        log.warning(
            "%s: %s cannot be read and %s left out%s",
            file,
            which,
            "are" if damaged[1:] else "is",
            copy,
        )
    return [line for line in lines.values() if line is not None]


def _metrics(text: str) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`: a step, a split and numbers by name; None if it is not one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(line, dict)
        or type(line.get("step")) is not int
        or not isinstance(line.get("split"), str)
    ):
        return None
    values = (value for name, value in line.items() if name != "split")
    return line if all(value is None or type(value) in (int, float) for value in values) else None
