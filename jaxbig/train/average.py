"""Averages the last checkpoints of a run into a run of its own."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.adapt.other_run import AVERAGES, PARAMETERS, STATISTICS
from jaxbig.adapt.weights import MASTERS
from jaxbig.arrays.dtypes import upcast
from jaxbig.arrays.tree import path_name
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.errors import Refused
from jaxbig.system.disk import new_folder, write_atomically
from jaxbig.train.run import Run, restore
from jaxbig.train.run_description import read_run, write_run_file
from jaxbig.train.trainer import open_checkpoints

AVERAGED = re.compile(f"^({PARAMETERS}|{STATISTICS}|{AVERAGES}|{MASTERS})")
"""Paths of the leaves of a state that are averaged."""


def average(run: str | Path, into: str | Path, *, last: int = 5) -> Run:
    """Makes a run whose weights are the mean of a run's last checkpoints (Izmailov et al., 2018).

    Parameters, batch statistics and moving averages are means; all else is that of the last step.
    The new run can be evaluated, predicts and generates as any other.

    Args:
      run: the folder of a run that keeps that many checkpoints, as with `--keep-last 5`.
      into: a new or empty folder.
      last: how many checkpoints, 2 or more.

    Raises:
      Refused: the run has fewer checkpoints, or adapters, whose means are no mean of the model; or
        the folder is not empty.
      Failed: a checkpoint is corrupt.
    """
    source = Path(run)
    folder = Path(into)
    if last < 2:
        raise Refused(f"last {last}: it must be 2 or more.")
    if on_process_zero(lambda: folder.exists() and not is_empty(folder)):
        raise Refused(f"{folder} is there already: give a new or an empty folder.")
    newest = restore(source)
    experiment = newest.experiment
    if experiment.lora.rank:
        raise Refused(
            f"{source} has adapters, and the mean of adapters is not that of the merged models: "
            f"train it with --ema 0.99 instead."
        )
    steps = on_process_zero(lambda: open_checkpoints(experiment, source).steps())
    if len(steps) < last:
        raise Refused(
            f"{source} has {len(steps)} checkpoints, of steps {', '.join(map(str, steps))}, and "
            f"last is {last}: give at most that, or train with --keep-last {last}."
        )
    steps = steps[-last:]
    state: Any = newest.state
    total = jax.tree_util.tree_map_with_path(
        lambda path, leaf: upcast(leaf) if AVERAGED.search(path_name(path)) else leaf, state
    )
    for step in steps[:-1]:
        total = add(total, restore(source, step=step, experiment=experiment).state)
    mean = jax.tree_util.tree_map_with_path(
        lambda path, new, sums: (
            (sums / last).astype(new.dtype) if AVERAGED.search(path_name(path)) else new
        ),
        state,
        total,
    )
    with written(folder) as partial:
        checkpoints = open_checkpoints(experiment, partial)
        with newest.program.activate():
            checkpoints.save(newest.step, mean, {})
            checkpoints.wait()
            checkpoints.close()
        on_process_zero(lambda: describe(newest, partial, steps))
    return restore(folder, experiment=experiment)


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Path]:
    """The folder to write into; if this process is alone, it has its name once it is complete."""
    if jax.process_count() == 1:
        with new_folder(folder) as partial:
            yield partial
    else:
        on_process_zero(lambda: folder.mkdir(parents=True, exist_ok=True))
        yield folder


def is_empty(folder: Path) -> bool:
    """Whether this is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def add(total: Any, state: Any) -> Any:
    """The sums with another state's leaves, where they are averaged."""

    def one(path: Any, sums: Any, leaf: Any) -> Any:
        return jnp.add(sums, upcast(leaf)) if AVERAGED.search(path_name(path)) else sums

    return jax.tree_util.tree_map_with_path(one, total, state)


def describe(run: Run, folder: Path, steps: list[int]) -> None:
    """Writes the new run's `run.json`, and what its data has learned."""
    described = read_run(run.directory)
    write_run_file(folder, {**(described or {}), "averaged": steps})
    for name, content in run.experiment.data.kept().items():
        write_atomically(folder / name, content)
