"""Attention maps of a run: which inputs each output attends to, as a PNG."""

import functools
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
from jaxbig.tracking.figures import PLAIN, grid, printable


def draw_attention(program: Program, state: TrainState, source: Source, file: Path) -> bool:
    """Draws what the model sows as `attention` for the first examples of a source.

    Args:
      program: whose model is evaluated.
      state: its parameters and variables.
      source: examples.
      file: PNG to write.

    Returns:
      Whether it drew: not if the model sows no `attention` [B, T, S], and not in a run of several
      processes.
    """
    if jax.process_count() > 1:
        return False
    rows = eval_batch(source, 0, batch=program.experiment.data.batch)
    attend = functools.partial(attention_of, program)
    if not jax.eval_shape(attend, state, rows):
        return False
    found = jax.jit(attend)(state, device_put_batch(rows, program.mesh))
    weights = np.asarray(jax.device_get(next(iter(found.values()))), np.float32)
    draw_maps(weights, rows, program.experiment.data, file=file)
    return True


def attention_of(program: Program, state: TrainState, batch: Any) -> dict[str, jax.Array]:
    """What the model sows as `attention` [B, T, S] in an evaluation of a batch, by path."""
    experiment = program.experiment
    key = rng.stream(experiment.seed, "evaluation")

    def evaluate(forward: Any) -> Any:
        return experiment.objective(forward, transformed(experiment, batch), key, False)

    apply = nn.apply(evaluate, experiment.model, mutable=["intermediates", *state.variables])
    _, variables = apply({"params": state.params, **state.variables})
    sown = flatten_with_paths(variables.get("intermediates", {}))
    return {path: leaf for path, leaf in sown.items() if "attention" in path and leaf.ndim == 3}


def draw_maps(weights: np.ndarray, rows: Rows, data: Data, *, file: Path, count: int = 4) -> None:
    """Draws one map per example: sources across, targets down, each named by `data.words`.

    Args:
      weights: [B, T, S], of each source position for each target position.
      rows: the batch.
      data: names the tokens.
      file: PNG to write.
      count: how many examples of the batch are drawn, at most.
    """
    count = min(count, len(weights))
    across = math.ceil(count**0.5)
    figure, panels = grid(count, across, width=6, height=4)
    for row, axes in enumerate(panels):
        length = int(rows["lengths"][row]) if "lengths" in rows else weights.shape[2]
        outputs = int(rows["mask"][row].sum())
        axes.imshow(weights[row, :outputs, :length], cmap="Grays", vmin=0, vmax=1, aspect="auto")
        for set_ticks, tokens in (
            (axes.set_xticks, rows["inputs"][row, :length]),
            (axes.set_yticks, rows["targets"][row, :outputs]),
        ):
            set_ticks(range(len(tokens)), [printable(word) for word in data.words(tokens)], **PLAIN)
        axes.set_xlabel("input")
        axes.set_ylabel("target")
    figure.savefig(file, dpi=100)
