"""What a run leaves to be read: metrics.jsonl, TensorBoard's event files, run.json and summary.json."""

import json
import math
from pathlib import Path
from typing import Any

import tensorboardX

from jaxbig.errors import Failed


class Metrics:
    """Writes `metrics.jsonl` (a line a log) and TensorBoard files of one run, from a step on.

    Lines beyond that step, written by a run that was killed before it could save, are taken out first: the
    steps will be made again, and a file holds each once.
    """

    def __init__(self, workdir: Path, start: int):
        self.file = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = self.file.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: the step, the split, the values; a value that is no number is written as null."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._stream.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise Failed(f"step {step}: cannot write {self.file}: {error.strerror}.") from error
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._stream.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n") if file.exists() else []
    return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline is cut off or nothing


def write_atomically(file: Path, text: str) -> None:
    """Writes the whole file or leaves the old one."""
    temporary = file.with_name(file.name + ".partial")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror}.") from error


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole, or leaves the old file."""
    write_atomically(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path) -> Any:
    """The JSON in a file, or None if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else None
