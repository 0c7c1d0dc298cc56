"""Predictions of a run: what its objective makes of files, texts, records, arrays or a split."""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbig.data.core.dataset import Data, Rows, Source
from jaxbig.data.core.examples import RecordSource
from jaxbig.data.core.fields import MismatchError
from jaxbig.data.pipeline.loader import part_reader
from jaxbig.data.pipeline.sampler import eval_indices, eval_steps, is_contiguous
from jaxbig.distributed.multihost import refuse_several
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.errors import Refused
from jaxbig.inference.inputs import Input, inputs_of
from jaxbig.program.program import make_program
from jaxbig.train.run import Run, open_run_split, restore

THREADS = 8
"""Threads that read records."""
TOP = 3
"""How many classes or tokens a prediction lists."""


class Prediction(NamedTuple):
    """What is predicted for an example."""

    row: dict[str, Any]
    """`record`, its path, line or number, and the objective's answer in words; or `error`."""
    found: dict[str, np.ndarray]
    """The arrays of that answer [...] by name; none of a record that cannot be read."""


class HostBatch(NamedTuple):
    """Examples that are read, in a batch of the size that is compiled."""

    names: Sequence[str | int]
    """Of the examples; the rest is padding."""
    places: list[int]
    """Their rows of the batch."""
    rows: Rows
    """Arrays [B, ...] by field."""
    errors: Mapping[int, Exception | str]
    """What is wrong with an example, by its row."""


def predict(
    run: Run | str | Path, inputs: Any = None, *, split: str = "", top: int = TOP, batch: int = 0
) -> list[dict[str, Any]]:
    """What a run predicts for files, texts, records or arrays, or for a split of its data.

    Inputs are read as in training: names of classes, the tokenizer and the statistics of columns
    are those in the run's folder. The numbers of an example do not depend on the others.

    Args:
      run: a run, or its folder, whose last checkpoint is taken.
      inputs: a path of a file, folder, pattern or table (.csv, .parquet, .jsonl, .npz); a text,
        where the data reads texts (paths are then `pathlib.Path`); a record, as {"area": 0.5}; the
        bytes of a file; a list of any of these; or arrays, as `jb.apply` takes them.
      split: in place of inputs: train, eval, or test where the data has such a split.
      top: how many classes or tokens to list, the likeliest first.
      batch: how many examples are computed at a time; 0: as in training.

    Returns:
      A dictionary for each example: `record`, its path, line or number, and what the objective
      answers, such as `class`, `probability` and `top`; `target` too for a split. Of a record that
      cannot be read, `error` alone.

    Raises:
      Refused: a path does not exist, the records do not fit, or none can be read.
    """
    refuse_several("predict")
    if not isinstance(run, Run):
        run = restore(run, for_training=False)
    if (inputs is None) != bool(split):
        raise Refused("give either inputs, or a split of the run's data.")
    run = with_batch(run, batch)
    if split:
        found = predict_split(run, open_run_split(run, split), split, top=top)
    else:
        found = predict_inputs(run, inputs_of(run.experiment.data, inputs), top=top)
    return [prediction.row for prediction in found]


def with_batch(run: Run, batch: int) -> Run:
    """The run with another number of examples at a time; 0: the same."""
    if batch in (0, run.experiment.data.batch):
        return run
    if batch < 0:
        raise Refused(f"batch {batch}: it must be 1 or more.")
    data = copy.copy(run.experiment.data)
    vars(data)["batch"] = batch  # `dataclasses.replace` would forget what the run has kept
    program = make_program(run.experiment.replace(data=data))
    return dataclasses.replace(run, experiment=program.experiment, program=program)


def predict_inputs(run: Run, inputs: Iterable[Input], *, top: int = TOP) -> Iterator[Prediction]:
    """Yields the prediction of each input, in order."""
    batches = read_batches(run.experiment.data, inputs)
    return held_back(predict_batches(run, batches, top=top, known=False))


def predict_split(run: Run, source: Source, split: str, *, top: int = TOP) -> Iterator[Prediction]:
    """Yields the prediction of each example of a split; what is known of it is in it too."""
    batches = split_batches(source, split, run.experiment.data.batch)
    carried = is_contiguous(source)
    return held_back(predict_batches(run, batches, top=top, known=True, carried=carried))


def predict_batches(
    run: Run, batches: Iterable[HostBatch], *, top: int, known: bool, carried: bool = False
) -> Iterator[Prediction]:
    """Yields the predictions of batches; each is described while the devices have the next.

    Args:
      run: the run.
      batches: of its program's size.
      top: as `Objective.predict` takes it.
      known: whether the batches have the right answers.
      carried: whether each row continues that of the batch before, as in an evaluation.
    """
    if top < 1:
        raise Refused(f"top {top}: it must be 1 or more.")
    program = run.program
    data = run.experiment.data
    mine = local_rows(program.mesh, data.batch)
    with program.activate():
        state: Any = program.merged(run.state)
    before: tuple[HostBatch, Any] | None = None
    for batch in itertools.chain(batches, [None]):
        now = None
        if batch is not None:
            rows = {name: field[mine] for name, field in batch.rows.items()}
            with program.activate():
                found, variables = program.predict(state, device_put_batch(rows, program.mesh), top)
            if carried:
                state = state.replace(variables=variables)
            now = (batch, found)
        if before is not None:
            yield from describe(run, *before, top=top, known=known)
        before = now


def describe(
    run: Run, batch: HostBatch, found: dict[str, jax.Array], *, top: int, known: bool
) -> Iterator[Prediction]:
    """Yields the predictions of a batch in words."""
    arrays: dict[str, np.ndarray] = jax.device_get(found)
    for name in run.experiment.objective.described:
        if name in batch.rows and (known or name == "inputs"):
            arrays[name] = batch.rows[name]
    for name, place in zip(batch.names, batch.places, strict=True):
        if place in batch.errors:
            yield Prediction({"record": name, "error": in_words(batch.errors[place])}, {})
            continue
        one = {key: np.asarray(array[place]) for key, array in arrays.items()}
        row = run.experiment.objective.describe(one, run.experiment.data, top=top)
        yield Prediction({"record": name, **row}, one)


def read_batches(data: Data, inputs: Iterable[Input]) -> Iterator[HostBatch]:
    """Yields batches of examples, read by threads; the last one is padded with zeros."""

    def read(each: Input) -> Any:
        try:
            return each.read()
        except Refused:  # about all records, such as a library that is not installed
            raise
        except Exception as error:
            return error

    inputs = iter(inputs)
    first = True
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(itertools.islice(inputs, data.batch)):
            examples = list(pool.map(read, some))
            errors = {i: each for i, each in enumerate(examples) if isinstance(each, Exception)}
            unfit = all(isinstance(error, MismatchError) for error in errors.values())
            if first and len(errors) == len(some) and unfit:
                raise Refused(f"{named(some[0].name)} does not fit the run: {errors[0]}.")
            first = False
            rows = {
                name: np.zeros((data.batch, *f.shape), f.dtype) for name, f in data.empty().items()
            }
            for i, example in enumerate(examples):
                if i not in errors:
                    for name, field in rows.items():
                        field[i] = example[name]
            yield HostBatch([each.name for each in some], list(range(len(some))), rows, errors)


def split_batches(source: Source, split: str, batch: int) -> Iterator[HostBatch]:
    """Yields the batches of an evaluation."""
    reader = part_reader(source, batch)
    for step in range(eval_steps(source, batch)):
        indices = eval_indices(source, step, batch=batch)
        rows, bad = reader.read(indices)
        faults = dict(bad)
        places = [place for place in range(batch) if indices[place] < len(source)]
        names = [name_of(source, split, int(indices[place])) for place in places]
        errors = {place: faults[indices[place]] for place in places if indices[place] in faults}
        yield HostBatch(names, places, rows, errors)


def name_of(source: Source, split: str, index: int) -> str:
    """The path or line of an example of a split, or its number."""
    if isinstance(source, RecordSource) and hasattr(source.records, "where"):
        return source.where(index)
    return f"{split} {index}"


def held_back(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Yields predictions, errors only once there is an example that could be read.

    Raises:
      Refused: there is none.
    """
    held: list[Prediction] = []
    good = False
    for each in predictions:
        if good or "error" not in each.row:
            yield from held
            held.clear()
            good = True
            yield each
        else:
            held.append(each)
    if good:
        return
    if not held:
        raise Refused("there is nothing to predict: the inputs have no record.")
    first = held[0].row
    count = f"none of {len(held)} records" if len(held) > 1 else "no record"
    raise Refused(f"{count} can be read, such as {named(first['record'])}: {first['error']}.")


def named(name: str | int) -> str:
    """A record in a message."""
    return f"record {name}" if isinstance(name, int) else name


def in_words(error: Exception | str) -> str:
    """What is wrong with a record, in one line."""
    if isinstance(error, OSError) and error.strerror:
        error = error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, str | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}"
