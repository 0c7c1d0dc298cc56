"""What a run leaves to be read: metrics.jsonl, TensorBoard's event files, run.json and summary.json."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed


class Metrics:
    """Writes `metrics.jsonl` (a line a log) and TensorBoard files of one run, from a step on.

    Lines beyond that step, written by a run that was killed before it could save, are taken out first: the
    steps will be made again, and a file holds each once. Of several processes one alone `writes`.
    """

    def __init__(self, workdir: Path, start: int, writes: bool = True):
        self.file, self.writes = workdir / "metrics.jsonl", writes
        if not writes:
            return
        from tensorboardX import summary  # here: it looks for the libraries of clouds, which a launcher has no need of
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._scalar, self._event, log = summary.scalar, event_pb2.Event, event_pb2.SessionLog  # type: ignore[attr-defined]
        kept = [line for line in read_metrics(workdir) if line["step"] <= start]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        with _writing(self.file, start):
            (workdir / "tensorboard").mkdir(exist_ok=True)
            self._stream = self.file.open("a")
            self._board = EventsWriter(str(workdir / "tensorboard" / "events"))  # no thread that could die unseen
            self._board.write_event(self._event(step=start + 1, session_log=log(status=log.START)))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: the step, the split, the values; a value that is no finite number is written as null."""
        if not self.writes:
            return
        with _writing(self.file, step):
            self._stream.write(to_json_text({"step": step, "split": split, **values}) + "\n")
            self._stream.flush()
            for name, value in values.items():
                told = self._scalar(f"{split}/{name}", value)
                self._board.write_event(self._event(step=step, wall_time=time.time(), summary=told))
            self._board.flush()

    def close(self) -> None:
        """Gives the files back; every line was flushed when it was written."""
        for file in (self._stream, self._board) if self.writes else ():
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def _writing(file: Path, step: int) -> Any:
    try:
        yield
    except OSError as error:
        raise Failed(f"step {step}: cannot write {file}: {error.strerror or error}.") from error


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n") if file.exists() else []
    return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline is cut off or nothing


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one."""
    temporary = file.with_name(file.name + ".partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(file)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror or error}.") from error


def to_json_text(value: Any, indent: int | None = None) -> str:
    """JSON as its standard has it: a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent)


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole, or leaves the old file."""
    write_atomically(file, to_json_text(value, indent=1) + "\n")


def read_json(file: Path) -> Any:
    """The JSON in a file, or None if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else None
