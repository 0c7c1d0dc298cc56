"""Writes and reads the metrics of a run: `metrics.jsonl` and TensorBoard event files."""

import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed
from jaxbig.system.disk import sync_open, write_atomically
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.figures import optional

log = logging.getLogger("jaxbig")


class MetricsWriter:
    """Writes `metrics.jsonl` (one line a log) and TensorBoard files of a run, from a step on.

    Lines after that step are removed first: a run that was killed before it could save wrote them,
    and the steps will be made again. Of several processes only one `writes`.
    """

    def __init__(self, workdir: Path, start: int, writes: bool = True):
        self.file = workdir / "metrics.jsonl"
        self.writes = writes
        self._board: TensorBoardWriter | None = None
        if not writes:
            return
        kept = [line for line in read_metrics(workdir, keep_damaged=True) if line["step"] <= start]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        with _writing(self.file, start):
            self._stream = self.file.open("a")
        with optional("TensorBoard"):
            self._board = TensorBoardWriter(workdir / "tensorboard", start)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: the step, the split, the values; non-finite values become null."""
        if not self.writes:
            return
        with _writing(self.file, step):
            self._stream.write(to_json_text({"step": step, "split": split, **values}) + "\n")
            self._stream.flush()
            if split != "train":
                # before the checkpoint: early stopping reads what is before it
                sync_open(self._stream.fileno())
        board = self._board
        self._board = None  # not used again if it fails
        with optional("TensorBoard has no more of this run"):
            if board is not None:
                board.write(step, split, values)
                self._board = board

    def close(self) -> None:
        """Closes the files; each line was flushed when it was written."""
        if self.writes:
            with contextlib.suppress(OSError):
                self._stream.close()
        with optional("TensorBoard"):
            if self._board is not None:
                self._board.close()


class TensorBoardWriter:
    """TensorBoard's event file of a run, written without a thread, which could fail unnoticed."""

    def __init__(self, folder: Path, start: int):
        # here: it looks for cloud libraries, which a launcher does not need
        with _without_torch():
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

        session = event_pb2.SessionLog  # type: ignore[attr-defined]
        self._scalar = summary.scalar
        self._event = event_pb2.Event  # type: ignore[attr-defined]
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.write_event(
            self._event(step=start + 1, session_log=session(status=session.START))
        )

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            scalar = self._scalar(f"{split}/{name}", value)
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=scalar))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed: that takes seconds, and is not used."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules["torch"]


@contextlib.contextmanager
def _writing(file: Path, step: int) -> Any:
    try:
        yield
    except OSError as error:
        raise Failed(f"step {step}: cannot write {file}: {error.strerror or error}.") from error


def read_metrics(workdir: Path, keep_damaged: bool = False) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without a last line that a kill cut off.

    Damaged lines, as a power loss or an editor may leave them, are left out with a warning.

    Args:
      workdir: the run directory.
      keep_damaged: if lines are damaged, copy the file to `broken/`: it is about to be overwritten.
    """
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    content = file.read_bytes()
    # what follows the last newline is cut off, or empty
    texts = content.decode(errors="replace").split("\n")[:-1]
    lines = {number: _metrics(text) for number, text in enumerate(texts, 1) if text}
    if damaged := [number for number, line in lines.items() if line is None]:
        numbers = ", ".join(map(str, damaged[:5]))
        more = ", ..." if len(damaged) > 5 else ""
        which = f"line {numbers} cannot be read and is"
        if len(damaged) > 1:
            which = f"lines {numbers}{more} cannot be read and are"
        copy = f"; the file is copied to {copy_to_broken(file, content)}" if keep_damaged else ""
        log.warning("%s: %s left out%s", file, which, copy)
    return [line for line in lines.values() if line is not None]


def last_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last value of each metric in lines of `metrics.jsonl`, by names as `eval/accuracy`."""
    return {
        f"{line['split']}/{name}": line[name]
        for line in lines
        for name in line
        if name not in ("step", "split")
    }


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


def copy_to_broken(file: Path, content: bytes) -> Path:
    """Copies a file's old content into `broken/`, where corrupt checkpoints go too."""
    folder = file.parent / "broken"
    folder.mkdir(exist_ok=True)
    names = (folder / f"{file.stem}-{number}{file.suffix}" for number in itertools.count())
    copy = next(name for name in names if not name.exists())
    write_atomically(copy, content)
    return copy
