"""Numbers as they stand in records: arrays, or columns of a table."""

import dataclasses
import json
import logging
from typing import Any

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record, Spec
from jaxbig.data.core.examples import AT_ONCE, Example, RecordSource
from jaxbig.data.core.fields import MismatchError, numbers
from jaxbig.data.labeled import Labeled

log = logging.getLogger("jaxbig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Labeled):
    """`inputs` [B, ...], float32, and `targets`: a class each [B], or numbers [B, ...], float32."""

    inputs: tuple[str, ...] = ("inputs",)
    """Which of a record's fields the model sees: one array, or several numbers as a vector in that order."""
    targets: str = "targets"
    """Which of them it learns."""
    shape: tuple[PositiveInt, ...]
    """Of one input."""
    target_shape: tuple[PositiveInt, ...] = ()
    """Of one target; () is a number."""
    classes: PositiveInt | None = None
    """How many classes the targets are of; None: they are numbers."""
    normalize: bool = False
    """Shift and scale each input to mean 0 and standard deviation 1 over the training records."""

    @property
    def label_field(self) -> str:
        return self.targets

    def prepare(self) -> str:
        """Also finds the mean and the standard deviation of each input, if they are normalized by them."""
        identity = super().prepare()
        if self.normalize:
            vars(self)["statistics"] = self.statistics(identity)
        return identity

    def statistics(self, identity: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the training records, float64 [*shape] each; a constant's deviation is 1.

        A record that cannot be read ends the run, or is left out, as in training.
        """
        file = (
            cache_folder("statistics")
            / f"{sha256(f'{identity} {self.records} {self.inputs} {self.shape}')[:24]}.npy"
        )
        if not file.exists():
            log.info("reading all training records for their mean and standard deviation (once)")
            empty = {"inputs": np.zeros(self.shape, np.float32)}
            source = RecordSource(
                self.records.open("train"),
                lambda record: {"inputs": self.input_of(record)},
                empty,
                self.skip_bad_records,
            )
            source.check("train")
            count = 0
            mean = np.zeros(self.shape)
            squares = np.zeros(self.shape)
            for start in range(
                0, len(source), AT_ONCE
            ):  # Chan et al. (1979): a chunk's are added to those before
                rows, bad = source.read_rows(np.arange(start, min(start + AT_ONCE, len(source))))
                source.leave_out(bad)
                values = np.delete(rows["inputs"], [index - start for index, _ in bad], 0).astype(
                    np.float64
                )
                if not len(values):
                    continue
                apart = values.mean(0) - mean
                squares += values.var(0) * len(values) + apart**2 * count * len(values) / (
                    count + len(values)
                )
                mean += apart * len(values) / (count + len(values))
                count += len(values)
            deviation = np.sqrt(squares / max(count, 1))
            found = np.stack([mean, np.where(deviation > 0, deviation, 1)])
            write_atomically(file, lambda path: np.save(path, found))
        mean, deviation = np.load(file)
        return mean, deviation

    def kept(self) -> dict[str, bytes]:
        if not self.normalize:
            return super().kept()
        mean, deviation = (each.tolist() for each in vars(self)["statistics"])
        said = {"inputs": self.inputs, "mean": mean, "standard_deviation": deviation}
        return {**super().kept(), "columns.json": json.dumps(said, indent=1).encode()}

    def spec(self) -> Spec:
        kind, shape = (np.float32, self.target_shape) if self.classes is None else (np.int32, ())
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, *self.shape), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch, *shape), kind),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def input_of(self, record: Record) -> np.ndarray:
        """What the model sees of a record, not normalized yet: float32 [*shape]; ValueError if there is none."""
        parts = [numbers(record, name, "--data.inputs") for name in self.inputs]
        if len(shapes := {part.shape for part in parts}) > 1:
            raise MismatchError(
                f"its {' '.join(self.inputs)} have the shapes {' '.join(map(str, shapes))}, and not one"
            )
        inputs = parts[0] if len(parts) == 1 else np.stack(parts)
        if inputs.shape != self.shape:
            raise MismatchError(
                f"its {' '.join(self.inputs)} have the shape {inputs.shape}, and --data.shape {self.shape}"
            )
        return inputs

    def read(self, record: Record) -> Example:
        inputs = self.input_of(record)
        if self.normalize:
            mean, deviation = vars(self)["statistics"]
            inputs = ((inputs - mean) / deviation).astype(np.float32)
        if self.classes is not None:
            targets: Any = self.class_of(record, "--data.targets")
        else:
            targets = numbers(record, self.targets, "--data.targets")
            if targets.shape != self.target_shape:
                raise MismatchError(
                    f"its {self.targets} has the shape {targets.shape}, and --data.target-shape {self.target_shape}"
                )
        return {"inputs": inputs, "targets": targets, "mask": np.float32(1)}
