"""Where predictions go: lines of JSON, arrays in a .npz, a table in a .parquet, and pictures.

A file gets its name when it is complete.
"""

import abc
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxbig.errors import Failed, Refused
from jaxbig.inference.predict import Prediction
from jaxbig.system.disk import replace
from jaxbig.system.json_files import to_json_text

PICTURE = "picture"
"""The name of an image in a prediction, uint8 [Y, X] of classes or [Y, X, 3]."""


class Writer(abc.ABC):
    """Writes predictions to a file."""

    def __init__(self, file: Path):
        self.file = file

    @abc.abstractmethod
    def add(self, prediction: Prediction) -> None:
        """Takes the next prediction."""

    @abc.abstractmethod
    def close(self) -> None:
        """Writes what is not written yet."""


class JsonLines(Writer):
    """A line of JSON each."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.opened: TextIO = file.open("w", encoding="utf-8")

    def add(self, prediction: Prediction) -> None:
        self.opened.write(as_line(prediction) + "\n")

    def close(self) -> None:
        self.opened.close()


class Parquet(Writer):
    """A row of a table each; a column is null where a prediction does not have it."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.rows: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        self.rows.append(without_picture(prediction.row))

    def close(self) -> None:
        import pyarrow  # here: slow to import
        import pyarrow.parquet

        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), self.file)


class Arrays(Writer):
    """Arrays [N, ...] by name: all numbers of the objective, and what is a number or a text of the
    answer in words. Rows of records that cannot be read are zero."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.predictions: list[Prediction] = []

    def add(self, prediction: Prediction) -> None:
        self.predictions.append(prediction)

    def close(self) -> None:
        rows = [each.row for each in self.predictions]
        example = next((each for each in self.predictions if each.found), self.predictions[0])
        arrays = {}
        for name, one in example.found.items():
            arrays[name] = np.zeros((len(rows), *one.shape), one.dtype)
            for number, each in enumerate(self.predictions):
                if each.found:
                    arrays[name][number] = each.found[name]
        plain = (str, bool, int, float)
        names = dict.fromkeys(name for row in rows for name in row)
        for name in names:
            values = [row[name] for row in rows if name in row]
            if all(isinstance(value, plain) for value in values):
                empty = type(values[0])()
                arrays[name] = np.array([row.get(name, empty) for row in rows])
        np.savez(self.file, **arrays)


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".npz": Arrays, ".parquet": Parquet}
"""What writes a file, by its ending."""


def check_output(output: Path) -> None:
    """Raises `Refused` unless a file of this name can be made."""
    if output.suffix not in WRITERS:
        raise Refused(f"--output {output}: its name must end in {', '.join(WRITERS)}.")
    if output.exists() or output.is_symlink():
        raise Refused(f"--output {output} exists: name another file, or remove it.")
    if not output.parent.is_dir():
        raise Refused(f"--output {output}: there is no folder {output.parent}.")


@contextlib.contextmanager
def written_to(output: Path) -> Iterator[Callable[[Prediction], None]]:
    """A context with a function that writes predictions into a file, which it makes at its end.

    Raises:
      Refused: the file exists, or its folder cannot be written.
      Failed: it could not be written to its end.
    """
    check_output(output)
    with beside(output, "--output") as part:
        writer = WRITERS[output.suffix](part)
        with cleanly(output):
            yield writer.add
            writer.close()


@contextlib.contextmanager
def pictures_in(folder: Path) -> Iterator[Callable[[Prediction], Prediction]]:
    """A context with a function that saves the pictures of predictions in a folder.

    The folder gets its name at the end. The function returns the prediction with the picture's path
    in its place. Errors are as of `written_to`.
    """
    if folder.exists():
        raise Refused(f"--pictures {folder} exists: name another folder, or remove it.")
    with beside(folder, "--pictures") as part:
        part.mkdir()
        count = 0

        def save(prediction: Prediction) -> Prediction:
            nonlocal count
            pixels = prediction.row.get(PICTURE)
            count += 1
            if pixels is None:
                return prediction
            name = f"{count}_{Path(str(prediction.row['record'])).stem}.png"
            with cleanly(folder):
                as_image(pixels).save(part / name)
            return prediction._replace(row={**prediction.row, PICTURE: str(folder / name)})

        yield save
        if not any(part.iterdir()):
            raise Refused("--pictures: these predictions have no picture: leave it out.")


@contextlib.contextmanager
def beside(target: Path, option: str) -> Iterator[Path]:
    """A context with a temporary path that gets its name at its end, and is removed on errors."""
    try:
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-")
    except OSError as error:
        raise Refused(f"{option} {target} cannot be made: {error.strerror or error}.") from error
    with folder as name:
        part = Path(name) / target.name
        yield part
        if target.exists():
            raise Refused(f"{option} {target} exists by now: name another.")
        replace(part, target)


@contextlib.contextmanager
def cleanly(target: Path) -> Iterator[None]:
    """A context in which an error of the file system is about this file."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{target} cannot be written: {error.strerror or error}.") from error


def as_line(prediction: Prediction, encoding: str = "utf-8") -> str:
    """A prediction as a line of JSON; a picture only if it is a path."""
    row = without_picture(prediction.row)
    line = to_json_text(row, ascii_only=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:  # as of a file's name that is not UTF-8
        return to_json_text(row)
    return line


def without_picture(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without an array of pixels."""
    return {name: each for name, each in row.items() if not isinstance(each, np.ndarray)}


def as_image(pixels: np.ndarray) -> Any:
    """Pixels as a Pillow image; classes [Y, X] have the colors of PASCAL VOC's masks."""
    from PIL import Image  # here: slow to import

    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image = Image.fromarray(pixels).convert("P")
        image.frombytes(pixels.tobytes())
        image.putpalette(palette())
    return image


def palette() -> list[int]:
    """256 colors, red, green and blue each: the bits of a number spread over the three."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1  # [256, 8]
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colors[:, bit % 3] |= bits[:, bit] << (7 - bit // 3)
    return colors.ravel().tolist()
