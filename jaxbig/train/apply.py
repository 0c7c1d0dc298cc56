"""A run's model on arrays, or on records."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbig.data.core.dataset import DEFAULTS, Data, Record, Rows
from jaxbig.data.core.examples import Examples, RecordSource
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.errors import Refused
from jaxbig.train.run import Run

NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def apply(run: Run, inputs: Any) -> Any:
    """What a run's model gives for arrays or records, as in an evaluation, on the run's mesh.

    Args:
      run: a run of `fit` or `restore`.
      inputs: a list of any number N of records, as the data reads them from its files; their labels
        may be missing. So `[{"image": file.read_bytes()}]` is resized, and a row of a table
        normalized, as in training. Or an array [N, ...] as the field `inputs` of the data's `spec`
        has them, before its `transform`; or fields by name, such as `inputs` and `lengths`.

    Returns:
      The model's outputs, such as logits [N, classes], on the host.

    Raises:
      Refused: a field's shape or numbers are not those of the data, or one is missing; or a record
        cannot be read.
    """
    data = run.experiment.data
    check_model(run.experiment.model)
    fields = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    if not isinstance(inputs, Mapping) and is_records(inputs):
        fields = read_records(data, inputs)
    rows = as_rows(fields, data.spec(), hint=hint_at_records(data))
    count = len(rows["inputs"])
    mine = local_rows(run.program.mesh, data.batch)
    outputs = []
    with run.program.activate():
        state = run.program.merged(run.state)
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
            f"run.experiment.model.apply(run.variables, ...)."
        )


def is_records(inputs: Any) -> bool:
    """Whether this is a list of records rather than an array."""
    listed = isinstance(inputs, Sequence) and len(inputs) > 0
    return listed and all(isinstance(each, Mapping) for each in inputs)


def read_records(data: Data, records: Sequence[Record]) -> Rows:
    """The fields of records, as in training, [N, ...] each."""
    if not isinstance(data, Examples):
        raise Refused(f"{type(data).__name__} reads no records: give arrays as its `spec` has.")
    reader = RecordSource([], data.read_unlabeled, data.empty())
    examples = []
    for number, record in enumerate(records):
        try:
            examples.append(reader.example(number, record, lambda index: None))
        except Refused:
            raise
        except ValueError as error:
            raise Refused(f"record {number}: {error}.") from error
    return {name: np.stack([example[name] for example in examples]) for name in reader.empty}


def hint_at_records(data: Data) -> str:
    """What may be given in place of an array that does not fit."""
    if not isinstance(data, Examples):
        return ""
    are_images = len(data.spec()["inputs"].shape) == 4
    record = "{'image': path.read_bytes()}" if are_images else "{...}"
    size = " of any size" if are_images else ""
    return f"; or give records{size}, as in jb.apply(run, [{record}]), to be read as in training"


def as_rows(
    fields: Mapping[str, Any], spec: Mapping[str, jax.ShapeDtypeStruct], *, hint: str = ""
) -> Rows:
    """All fields of a batch of N examples, those of `DEFAULTS` filled in.

    hint: the end of an error's message.
    """
    if unknown := [name for name in fields if name not in spec]:
        raise Refused(f"the data has no field {unknown[0]!r}: it has {', '.join(spec)}.")
    if missing := [name for name in spec if name not in (*fields, *DEFAULTS)]:
        given = ", ".join(f"'{name}': ..." for name in (*fields, *missing))
        raise Refused(f"the data has the field {missing[0]!r} too: give {{{given}}}.")
    rows = {name: as_field(name, value, spec[name], hint=hint) for name, value in fields.items()}
    counts = {name: len(field) for name, field in rows.items()}
    if len(set(counts.values())) > 1 or not counts["inputs"]:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise Refused(f"the fields must have one number of examples, 1 or more: they have {text}.")
    for name, each in spec.items():
        if name not in rows:
            shape = (counts["inputs"], *each.shape[1:])
            rows[name] = np.full(shape, DEFAULTS[name], each.dtype)
    return rows


def as_field(
    name: str, value: Any, expected: jax.ShapeDtypeStruct, *, hint: str = ""
) -> np.ndarray:
    """An array of the expected dtype; raises if its examples have another shape, or its numbers
    would change."""
    try:
        field = np.asarray(value)
    except ValueError:
        raise Refused(f"{name} is no array: its rows have different shapes{hint}.") from None
    if field.dtype.kind in "OSU":
        raise Refused(f"{name} is {kind_of(field)}, and no array of numbers{hint}.")
    if field.shape[1:] != expected.shape[1:] or not field.ndim:
        wanted = ", ".join(["N", *map(str, expected.shape[1:])])
        given = ", ".join(map(str, field.shape))
        if field.shape == expected.shape[1:]:
            hint = "; for one example give it as array[None]"
        raise Refused(f"{name} is [{given}], and the data has [{wanted}]{hint}.")
    if field.dtype == expected.dtype:
        return field
    with np.errstate(invalid="ignore"):
        cast = field.astype(expected.dtype)
    if not np.issubdtype(expected.dtype, np.floating) and not np.array_equal(cast, field):
        least = field.min()
        most = field.max()
        fix = "; give 0 to 255 as uint8" if least >= 0 and most <= 1 else ""
        raise Refused(
            f"{name} is {field.dtype}, and the data has {np.dtype(expected.dtype)}, which cannot "
            f"hold its numbers, {least} to {most}{fix if expected.dtype == np.uint8 else ''}."
        )
    return cast


def kind_of(field: np.ndarray) -> str:
    """What is in an array that is not of numbers, for a message."""
    first = field.ravel()[0] if field.size else field
    if isinstance(first, str | os.PathLike):
        return f"text, such as {str(first)!r}"
    return f"of {type(first).__name__}"


def padded(rows: Rows, start: int, batch: int) -> Rows:
    """The examples from `start` on as a batch; what is beyond the last is zero."""
    found = {}
    for name, field in rows.items():
        part = field[start : start + batch]
        found[name] = np.zeros((batch, *field.shape[1:]), field.dtype)
        found[name][: len(part)] = part
    return found
