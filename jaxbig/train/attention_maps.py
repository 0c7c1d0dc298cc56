"""Attention maps of a run: which inputs each output attends to, as a PNG."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.data.core.dataset import Data, Rows, Source
from jaxbig.data.pipeline.loader import eval_batch
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.objectives.base import sums_of
from jaxbig.program import rng
from jaxbig.program.apply_model import make_apply
from jaxbig.program.program import Program, collecting, transformed
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
    state = program.merged(state)
    attend = functools.partial(attention_of, program)
    if not jax.eval_shape(attend, state, rows)[0]:
        return False
    found, outputs = jax.jit(attend)(state, device_put_batch(rows, program.mesh))
    weights = np.asarray(jax.device_get(next(iter(found.values()))), np.float32)
    answers = answers_of(jax.device_get(outputs), rows)
    draw_maps(weights, rows, program.experiment.data, answers=answers, file=file)
    return True


def attention_of(
    program: Program, state: TrainState, batch: Any
) -> tuple[dict[str, jax.Array], list[Any]]:
    """What the model sows as `attention` [B, T, S] in an evaluation of a batch, by path; and what
    it returns."""
    outputs: list[Any] = []
    experiment = program.experiment
    key = rng.stream(experiment.seed, "evaluation")

    def evaluate(forward: Any) -> Any:
        with collecting(outputs):
            rows = transformed(experiment, batch)
            return sums_of(experiment.objective, forward, rows, key=key, train=False)

    apply = make_apply(experiment, evaluate, ["intermediates", *state.variables])
    _, variables = apply({"params": state.params, **state.variables})
    sown = flatten_with_paths(variables.get("intermediates", {}))
    maps = {path: leaf for path, leaf in sown.items() if "attention" in path and leaf.ndim == 3}
    return maps, outputs


def answers_of(outputs: Any, rows: Rows) -> np.ndarray | None:
    """The likeliest token [B, T] at each position, given the true ones before it; None if the model
    returned no logits [B, T, V]."""
    if not outputs or getattr(outputs[-1], "shape", ())[:-1] != rows["targets"].shape:
        return None
    return np.argmax(outputs[-1], axis=-1)


def draw_maps(
    weights: np.ndarray,
    rows: Rows,
    data: Data,
    *,
    file: Path,
    answers: np.ndarray | None = None,
    count: int = 4,
) -> None:
    """Draws one map per example: sources across, targets down, each named by `data.words`.

    The model's answer for each target is on the right, in red where it is wrong.

    Args:
      weights: [B, T, S], of each source position for each target position.
      rows: the batch.
      data: names the tokens.
      file: PNG to write.
      answers: [B, T], as `answers_of` returns them.
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
        if answers is not None:
            right = axes.secondary_yaxis("right")
            words = [printable(word) for word in data.words(answers[row, :outputs])]
            right.set_yticks(range(outputs), words, **PLAIN)
            right.set_ylabel("answer")
            wrong = answers[row, :outputs] != rows["targets"][row, :outputs]
            for tick, is_wrong in zip(right.get_yticklabels(), wrong, strict=True):
                tick.set_color("red" if is_wrong else "black")
    figure.savefig(file, dpi=100)
