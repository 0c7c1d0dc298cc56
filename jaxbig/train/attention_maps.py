"""Pictures of a run: where a model with attention looks."""

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.data.core.dataset import Data, Rows, Source
from jaxbig.data.pipeline.loader import eval_batch
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.program import rng
from jaxbig.program.program import Program, transformed
from jaxbig.program.state import TrainState
from jaxbig.tracking.figures import PLAIN, printable


def draw_attention(program: Program, state: TrainState, source: Source, file: Path) -> bool:
    """Draws what the model sows as `attention` [B, T, S] for the first examples of a source; False if it sows none, or
    runs as several processes."""
    if jax.process_count() > 1:
        return False
    rows = eval_batch(source, 0, batch=program.experiment.data.batch)
    shapes = jax.eval_shape(lambda state, batch: _look(program, state, batch), state, rows)
    if not shapes:
        return False
    weights = jax.jit(lambda state, batch: _look(program, state, batch))(
        state, device_put_batch(rows, program.mesh)
    )
    maps(
        np.asarray(jax.device_get(next(iter(weights.values()))), np.float32),
        rows,
        program.experiment.data,
        file,
    )
    return True


def _look(program: Program, state: TrainState, batch: Any) -> dict[str, jax.Array]:
    """What is sown as `attention`, by path, in an evaluation of a batch."""
    experiment = program.experiment
    key = rng.stream(experiment.seed, "evaluation")
    evaluate = lambda forward: experiment.objective(
        forward, transformed(experiment, batch), key, False
    )
    apply = nn.apply(evaluate, experiment.model, mutable=["intermediates", *state.variables])
    _, variables = apply({"params": state.params, **state.variables})
    sown = flatten_with_paths(variables.get("intermediates", {}))
    return {path: leaf for path, leaf in sown.items() if "attention" in path and leaf.ndim == 3}


def maps(weights: np.ndarray, rows: Rows, data: Data, file: Path, count: int = 4) -> None:
    """weights [B, T, S] of the first rows as a PNG: sources across, targets down, each named by `data.words`."""
    from matplotlib.figure import Figure  # here: slow to import

    count = min(count, len(weights))
    across = math.ceil(count**0.5)
    figure = Figure(figsize=(6 * across, 4 * math.ceil(count / across)), layout="constrained")
    for row in range(count):
        length = int(rows["lengths"][row]) if "lengths" in rows else weights.shape[2]
        outputs = int(rows["mask"][row].sum())
        axes = figure.add_subplot(math.ceil(count / across), across, row + 1)
        axes.imshow(weights[row, :outputs, :length], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        for set_ticks, tokens in (
            (axes.set_xticks, rows["inputs"][row, :length]),
            (axes.set_yticks, rows["targets"][row, :outputs]),
        ):
            set_ticks(range(len(tokens)), [printable(word) for word in data.words(tokens)], **PLAIN)
        axes.set_xlabel("read")
        axes.set_ylabel("to be written")
    figure.savefig(file, dpi=100)
