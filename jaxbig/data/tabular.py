"""Data sets of columns: numbers, with their mean and deviation; categories, by rows of a table."""

import dataclasses
import json
import logging
import zlib
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record, Source, Spec
from jaxbig.data.core.examples import AT_ONCE, Example, RecordSource
from jaxbig.data.core.fields import MismatchError, field, format_value, numbers, whole_number
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
STATISTICS_FILE = "columns.json"
"""The file in a run's folder with the mean and standard deviation of the inputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Labeled):
    """Numbers to numbers, or numbers to classes.

    A batch has `inputs`, float32 [B, *shape], and `targets`: the class, int32 [B], or numbers,
    float32 [B, *target_shape].
    """

    inputs: tuple[str, ...] = ("inputs",)
    """The record's fields that are the input: one array, or several numbers, stacked in order."""
    targets: str = "targets"
    """The record's field that is the target."""
    shape: tuple[PositiveInt, ...]
    """Shape of one input."""
    target_shape: tuple[PositiveInt, ...] = ()
    """Shape of one target; (): a number."""
    classes: PositiveInt | None = None  # type: ignore[assignment]
    """Number of classes of the targets; None: targets are numbers."""
    normalize: bool = False
    """Normalize each input to mean 0 and standard deviation 1 over the training records."""

    @property
    def label_field(self) -> str:
        return self.targets

    def prepare(self) -> str:
        """Also computes the mean and standard deviation of the inputs if they are normalized."""
        identity = super().prepare()
        if self.normalize:
            vars(self)["statistics"] = self.measure(identity)
        return identity

    def measure(self, identity: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the training records, float64 [*shape] each; cached.

        The deviation of a constant is set to 1. A record that cannot be read ends the run, or is
        skipped, as in training.
        """
        key = sha256(f"{identity} {self.records} {self.inputs} {self.shape}")[:24]
        file = cache_folder("statistics") / f"{key}.npy"
        if not file.exists():
            log.info("reading all training records for their mean and standard deviation (once)")
            found = self.compute_statistics()
            write_atomically(file, lambda path: np.save(path, found))
        mean, deviation = np.load(file)
        return mean, deviation

    def compute_statistics(self) -> np.ndarray:
        """Mean and standard deviation, stacked, float64 [2, *shape]."""
        source = RecordSource(
            self.records.open("train"),
            lambda record: {"inputs": self.input_of(record)},
            {"inputs": np.zeros(self.shape, np.float32)},
            self.skip_bad_records,
        )
        source.check("train")
        count = 0
        mean = np.zeros(self.shape)
        squares = np.zeros(self.shape)
        # combines the statistics of chunks: Chan et al. (1979)
        for start in range(0, len(source), AT_ONCE):
            rows, bad = source.read_rows(np.arange(start, min(start + AT_ONCE, len(source))))
            source.leave_out(bad)
            good = np.delete(rows["inputs"], [index - start for index, _ in bad], 0)
            values = good.astype(np.float64)
            size = len(values)
            if not size:
                continue
            shift = values.mean(0) - mean
            squares += values.var(0) * size + shift**2 * count * size / (count + size)
            mean += shift * size / (count + size)
            count += size
        deviation = np.sqrt(squares / max(count, 1))
        return np.stack([mean, np.where(deviation > 0, deviation, 1)])

    def kept(self) -> dict[str, bytes]:
        if not self.normalize:
            return super().kept()
        mean, deviation = self.mean_and_deviation
        statistics = {
            "inputs": self.inputs,
            "mean": mean.tolist(),
            "standard_deviation": deviation.tolist(),
        }
        return {**super().kept(), STATISTICS_FILE: json.dumps(statistics, indent=1).encode()}

    def with_kept(self, folder: Path) -> Self:
        data = super().with_kept(folder)
        file = folder / STATISTICS_FILE
        if file.exists():
            saved = json.loads(file.read_text())
            vars(data)["statistics"] = (
                np.array(saved["mean"]),
                np.array(saved["standard_deviation"]),
            )
        return data

    @property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training records, float64 [*shape] each.

        Raises:
          Refused: they are not known yet.
        """
        if "statistics" not in vars(self):
            raise Refused(
                f"the mean and standard deviation of {' '.join(self.inputs)} are not known yet: "
                f"call `data.prepare()`, which reads the training records, or take the data of "
                f"`jb.restore(...)`."
            )
        return vars(self)["statistics"]

    def source(self, split: str) -> Source:
        if self.normalize:
            _ = self.mean_and_deviation  # raises here rather than for a record
        return super().source(split)

    def spec(self) -> Spec:
        targets = jax.ShapeDtypeStruct((self.batch,), np.int32)
        if self.classes is None:
            targets = jax.ShapeDtypeStruct((self.batch, *self.target_shape), np.float32)
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, *self.shape), np.float32),
            "targets": targets,
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def input_of(self, record: Record) -> np.ndarray:
        """The input of a record before normalization, float32 [*shape].

        Raises:
          ValueError: a field is missing, is not numbers, or has another shape.
        """
        parts = [numbers(record, name, "--data.inputs") for name in self.inputs]
        if len(shapes := {part.shape for part in parts}) > 1:
            raise MismatchError(
                f"its {' '.join(self.inputs)} have different shapes, {' '.join(map(str, shapes))}"
            )
        inputs = parts[0] if len(parts) == 1 else np.stack(parts)
        if inputs.shape != self.shape:
            raise MismatchError(
                f"its {' '.join(self.inputs)} have the shape {inputs.shape}, but --data.shape is "
                f"{self.shape}"
            )
        return inputs

    def read_unlabeled(self, record: Record) -> Example:
        if self.classes is not None:
            return super().read_unlabeled(record)
        return self.read({self.targets: np.zeros(self.target_shape), **record})

    def read(self, record: Record) -> Example:
        inputs = self.input_of(record)
        if self.normalize:
            mean, deviation = self.mean_and_deviation
            inputs = ((inputs - mean) / deviation).astype(np.float32)
        if self.classes is not None:
            targets: Any = self.class_of(record, "--data.targets")
        else:
            targets = numbers(record, self.targets, "--data.targets")
            if targets.shape != self.target_shape:
                raise MismatchError(
                    f"its {self.targets} has the shape {targets.shape}, but --data.target-shape is "
                    f"{self.target_shape}"
                )
        return {"inputs": inputs, "targets": targets, "mask": np.float32(1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categories(Labeled):
    """Categories, and numbers beside them, to classes.

    A batch has `inputs`, int32 [B, N]: a row for each field, of one table where each field has a
    part of its own; `numbers`, float32 [B, M], if there are any; and the class, `targets` [B]. A
    category that is a whole number below the rows of its field is that row, any other is hashed to
    one (Weinberger et al., 2009), and a missing one is row 0.
    """

    categories: tuple[tuple[str, PositiveInt], ...]
    """The record's fields with categories, each with its number of rows."""
    numbers: tuple[str, ...] = ()
    """The record's fields with numbers; a missing one is 0."""
    logarithm: bool = False
    """Take log(1 + x) of numbers x, and 0 of those below 0."""
    targets: str = "targets"
    """The record's field that is the target."""

    @property
    def label_field(self) -> str:
        return self.targets

    @property
    def vocab(self) -> int:
        """How many rows the table of all fields has."""
        return sum(rows for _, rows in self.categories)

    def spec(self) -> Spec:
        inputs = jax.ShapeDtypeStruct((self.batch, len(self.categories)), np.int32)
        numbers = jax.ShapeDtypeStruct((self.batch, len(self.numbers)), np.float32)
        return {
            "inputs": inputs,
            **({"numbers": numbers} if self.numbers else {}),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        inputs = []
        first = 0
        for name, rows in self.categories:
            inputs.append(first + row_of(field(record, name, "--data.categories"), name, rows))
            first += rows
        example = {
            "inputs": np.array(inputs, np.int32),
            "targets": self.class_of(record, "--data.targets"),
            "mask": np.float32(1),
        }
        if not self.numbers:
            return example
        given = {name: field(record, name, "--data.numbers") for name in self.numbers}
        present = {name: 0 if value is None else value for name, value in given.items()}
        x = np.stack([numbers(present, name, "--data.numbers") for name in self.numbers])
        if x.ndim != 1:
            raise MismatchError(f"its {' '.join(self.numbers)} are not one number each")
        return example | {"numbers": np.log1p(np.maximum(x, 0)) if self.logarithm else x}

    def synthetic(self) -> "Categories":
        """The same data set with synthetic records."""
        labels = (*self.categories, *((name, 100) for name in self.numbers))
        records = Synthetic(labels=(*labels, (self.targets, self.classes)))
        return dataclasses.replace(self, records=records)


def row_of(value: Any, name: str, rows: int) -> int:
    """The row of a category, from 0 to `rows` - 1."""
    number = whole_number(value)
    if number is not None and 0 <= number < rows:
        return number
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if text is not None and np.ndim(text):
        raise MismatchError(f"its {name!r} is {format_value(value)}, and not one category")
    return zlib.crc32(str("" if text is None else text).encode()) % rows
