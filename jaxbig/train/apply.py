"""A run's model on arrays."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.errors import Refused
from jaxbig.program.state import without_optimizer
from jaxbig.train.run import Run

DEFAULTS = {"targets": 0, "mask": 1, "starts": 1}
"""Fields of a batch that need not be given: each example counts, and starts a text of its own."""
NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def apply(run: Run, inputs: Any) -> Any:
    """What a run's model gives for arrays, as in an evaluation: without dropout, on the run's mesh.

    Args:
      run: a run of `fit` or `restore`.
      inputs: an array [N, ...] for any number N of examples, as the field `inputs` of the data's
        `spec` has them, before its `transform`; or fields by name, such as `inputs` and `lengths`.

    Returns:
      The model's outputs, such as logits [N, classes], on the host.

    Raises:
      Refused: a field's shape or numbers are not those of the data, or one is missing.
    """
    data = run.experiment.data
    check_model(run.experiment.model)
    fields = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    rows = as_rows(fields, {name: each for name, each in data.spec().items()})
    count = len(rows["inputs"])
    mine = local_rows(run.program.mesh, data.batch)
    state = without_optimizer(run.state)
    outputs = []
    with run.program.activate():
        for start in range(0, count, data.batch):
            part = padded(rows, start, data.batch)
            batch = device_put_batch(
                {name: field[mine] for name, field in part.items()}, run.program.mesh
            )
            outputs.append(jax.device_get(run.program.forward(state, batch)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *outputs)


def check_model(model: nn.Module) -> None:
    """Raises `Refused` for a model that takes what no data has, such as the tokens before."""
    taken = inspect.signature(type(model).__call__).parameters.values()
    required = [each.name for each in taken if each.default is each.empty and each.kind in NAMED]
    if len(required) > 2:  # itself and its inputs
        raise Refused(
            f"{type(model).__name__} takes {required[2]!r} besides its inputs: call it as "
            f"run.experiment.model.apply({{'params': run.state.params}}, ...)."
        )


def as_rows(fields: Mapping[str, Any], spec: Mapping[str, jax.ShapeDtypeStruct]) -> Rows:
    """All fields of a batch of N examples, those of `DEFAULTS` filled in."""
    if unknown := [name for name in fields if name not in spec]:
        raise Refused(f"the data has no field {unknown[0]!r}: it has {', '.join(spec)}.")
    if missing := [name for name in spec if name not in (*fields, *DEFAULTS)]:
        given = ", ".join(f"'{name}': ..." for name in (*fields, *missing))
        raise Refused(f"the data has the field {missing[0]!r} too: give {{{given}}}.")
    rows = {name: as_field(name, value, spec[name]) for name, value in fields.items()}
    counts = {name: len(field) for name, field in rows.items()}
    if len(set(counts.values())) > 1 or not counts["inputs"]:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise Refused(f"the fields must have one number of examples, 1 or more: they have {text}.")
    for name, each in spec.items():
        if name not in rows:
            shape = (counts["inputs"], *each.shape[1:])
            rows[name] = np.full(shape, DEFAULTS[name], each.dtype)
    return rows


def as_field(name: str, value: Any, expected: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of the expected dtype; raises if its examples have another shape, or its numbers
    would change."""
    field = np.asarray(value)
    if field.shape[1:] != expected.shape[1:] or not field.ndim:
        wanted = ", ".join(["N", *map(str, expected.shape[1:])])
        given = ", ".join(map(str, field.shape))
        hint = ""
        if field.shape == expected.shape[1:]:
            hint = "; for one example give it as array[None]"
        raise Refused(f"{name} is [{given}], and the data has [{wanted}]{hint}.")
    if field.dtype == expected.dtype:
        return field
    with np.errstate(invalid="ignore"):
        cast = field.astype(expected.dtype)
    if not np.issubdtype(expected.dtype, np.floating) and not np.array_equal(cast, field):
        raise Refused(
            f"{name} is {field.dtype}, and the data has {np.dtype(expected.dtype)}, which cannot "
            f"hold its numbers, {field.min()} to {field.max()}."
        )
    return cast


def padded(rows: Rows, start: int, batch: int) -> Rows:
    """The examples from `start` on as a batch; what is beyond the last is zero."""
    found = {}
    for name, field in rows.items():
        part = field[start : start + batch]
        found[name] = np.zeros((batch, *field.shape[1:]), field.dtype)
        found[name][: len(part)] = part
    return found
