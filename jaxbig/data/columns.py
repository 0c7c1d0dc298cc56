"""Numbers as they stand in records: arrays, or columns of a table."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxbig.data.base import Record, Spec
from jaxbig.data.examples import Example, Examples
from jaxbig.data.fields import Mismatch, class_of, numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Examples):
    """`inputs` [B, ...], float32, and `targets`: a class each [B], or numbers [B, ...], float32."""

    inputs: tuple[str, ...] = ("inputs",)
    """Which of a record's fields the model sees: one array, or several numbers as a vector in that order."""
    targets: str = "targets"
    """Which of them it learns."""
    shape: tuple[int, ...]
    """Of one input."""
    target_shape: tuple[int, ...] = ()
    """Of one target; () is a number."""
    classes: int | None = None
    """How many classes the targets are of; None: they are numbers."""

    def spec(self) -> Spec:
        kind, shape = (np.float32, self.target_shape) if self.classes is None else (np.int32, ())
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, *self.shape), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch, *shape), kind),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        parts = [numbers(record, name, "--data.inputs") for name in self.inputs]
        if len(shapes := {part.shape for part in parts}) > 1:
            raise Mismatch(f"its {' '.join(self.inputs)} have the shapes {' '.join(map(str, shapes))}, and not one")
        inputs = parts[0] if len(parts) == 1 else np.stack(parts)
        if inputs.shape != self.shape:
            raise Mismatch(f"its {' '.join(self.inputs)} have the shape {inputs.shape}, and --data.shape {self.shape}")
        if self.classes is not None:
            targets: Any = class_of(record, self.targets, self.classes, "--data.targets")
        else:
            targets = numbers(record, self.targets, "--data.targets")
            if targets.shape != self.target_shape:
                raise Mismatch(
                    f"its {self.targets} has the shape {targets.shape}, and --data.target-shape {self.target_shape}"
                )
        return {"inputs": inputs, "targets": targets, "mask": np.float32(1)}
