"""The base class of metrics over all outputs of an evaluation, for what is no sum over examples."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbig.errors import Refused

Kept = dict[str, np.ndarray]
"""What a metric keeps of a batch, or of all of them: arrays [N, ...] by name."""


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """A number, or more, that an evaluation computes from all outputs of the model at once.

    Without metrics an evaluation keeps no outputs. Every process of a run gets all rows.
    """

    @abc.abstractmethod
    def result(self, kept: Kept) -> dict[str, float]:
        """The metrics by name.

        Args:
          kept: what `keep` returned for each batch, joined along the first axis.
        """

    def keep(self, outputs: Any, batch: Kept) -> Kept:
        """What to keep of a batch; by default `outputs` and `targets` where the mask is not 0.

        Args:
          outputs: what the model returned, NumPy arrays [B, ...].
          batch: the fields that the objective got, without `inputs`: `targets`, `mask`, ...
        """
        real = batch["mask"] > 0
        return {"outputs": outputs[real], "targets": batch["targets"][real]}

    def check(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Raises `Refused` if the model or the data do not fit; both have shapes and dtypes only.

        By default they need what `keep` takes by default.
        """
        name = type(self).__name__
        if type(self).keep is not Metric.keep:
            return
        if "targets" not in batch:
            raise Refused(f"metrics: {name} needs targets, and the data has {', '.join(batch)}.")
        axes = batch["mask"].shape
        if getattr(outputs, "shape", ())[: len(axes)] != axes:
            raise Refused(
                f"metrics: {name} needs one array of outputs with the axes {axes} of the mask "
                f"first; the model returns {describe_shapes(outputs)}."
            )


def describe_shapes(outputs: Any) -> str:
    """The shape of outputs in words."""
    return str(outputs.shape) if hasattr(outputs, "shape") else type(outputs).__name__


class Collector:
    """Keeps what a metric needs of each batch of an evaluation."""

    def __init__(self, metric: Metric):
        self.metric = metric
        self.parts: list[Kept] = []

    def add(self, outputs: Any, batch: Kept) -> None:
        """Takes the outputs of a batch, and its fields but `inputs`, as NumPy arrays."""
        self.parts.append(self.metric.keep(outputs, batch))

    def joined(self) -> Kept:
        """What was kept of all batches."""
        names = self.parts[0] if self.parts else ()
        return {name: np.concatenate([part[name] for part in self.parts]) for name in names}

    def result(self) -> dict[str, float]:
        """The metrics by name; none if there was no batch."""
        if not self.parts:
            return {}
        return {name: float(value) for name, value in self.metric.result(self.joined()).items()}
