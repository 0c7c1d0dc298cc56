"""Learning-rate finder: the loss over a few steps in which the learning rate rises to divergence.

It is the range test of Smith (2017). Nothing of a run is read or written.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.config.guard import Guard
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.program.program import Program, make_program
from jaxbig.program.state import TrainState
from jaxbig.tracking.console import Screen
from jaxbig.tracking.figures import optional
from jaxbig.train.batch_loader import host_batches
from jaxbig.train.reference import give_reference, reference_identity
from jaxbig.train.resume import best_weights, prepare, with_weights
from jaxbig.train.trainer import compile_step

log = logging.getLogger("jaxbig")
MIN_STEPS = 20
"""The fewest steps that give a curve."""
SMOOTHING = 0.9
"""Decay of the running mean of the losses that ends the search."""
DIVERGED = 4.0
"""The search ends where the running mean of the loss is this many times its least."""


def find_learning_rate(
    experiment: Experiment, *, start: float, end: float, steps: int, picture: Path, screen: Screen
) -> dict[str, Any]:
    """Trains for a few steps, each with a larger learning rate than the one before.

    Args:
      experiment: what is trained; its schedule is replaced.
      start: the learning rate of the first step.
      end: the learning rate of the last step.
      steps: the number of steps, if the loss does not diverge before.
      picture: PNG to write.
      screen: where progress is shown.

    Returns:
      `suggestion`, the learning rate at which the smoothed loss falls fastest per decade, None if
      it falls nowhere; `lowest`, the one at which it is lowest; `diverged`, whether that ended the
      search; `rates`, `losses` and `smoothed`, of each step made; `picture`.

    Raises:
      Refused: a number is out of range, or the experiment does not fit its data or devices.
    """
    if not 0 < start < end < math.inf:
        raise Refused(f"--start {start:g} --end {end:g}: start must be above 0 and below end.")
    if steps < MIN_STEPS:
        raise Refused(f"--search-steps {steps}: it must be {MIN_STEPS} or more.")
    optimizer = experiment.optimizer.rising(start, end)
    program = make_program(
        dataclasses.replace(experiment, optimizer=optimizer, steps=steps, guard=Guard())
    )
    identity = prepare(experiment)
    with program.activate():
        rates, losses = measure(program, identity, screen)
    diverged = len(losses) < steps or not math.isfinite(losses[-1])
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < MIN_STEPS // 2:
        raise Refused(
            f"--start {start:g}: the loss diverged in {len(finite)} steps: start lower, or search "
            f"over more steps with --search-steps."
        )
    found = suggest(rates[: len(finite)], finite)
    result = {
        **found,
        "diverged": diverged,
        "start": start,
        "end": end,
        "steps": len(losses),
        "rates": rates,
        "losses": losses,
        "picture": None,
    }
    with optional(f"no picture {picture}"):
        draw(result, picture)
        result["picture"] = str(picture)
    return result


def measure(program: Program, identity: str, screen: Screen) -> tuple[list[float], list[float]]:
    """The learning rate and the loss of each step, to the last one or until the loss diverges."""
    train_step, _ = compile_step(program)
    state = first_state(program)
    experiment = program.experiment
    of = {"data_identity": identity, **reference_identity(experiment)}
    give_reference(program, None, of, start=state)
    source = experiment.data.source("train")
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    least = math.inf
    steps = program.experiment.steps
    batches = host_batches(program, source, start=0, stop=steps)
    with contextlib.closing(batches), contextlib.ExitStack() as stack:
        screen.start(0, steps)
        stack.callback(screen.stop)
        began = time.perf_counter()
        for step, rows in enumerate(batches, 1):
            state, metrics = train_step(state, device_put_batch(rows, program.mesh))
            values = jax.device_get(metrics)
            loss = float(values["loss"])
            rates.append(float(values["learning_rate"]))
            losses.append(loss)
            speed = step / (time.perf_counter() - began)
            screen.train(step, {**values, "steps_per_second": speed})
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            unbiased = mean / (1 - SMOOTHING**step)
            least = min(least, unbiased)
            if not math.isfinite(loss) or unbiased > least + (DIVERGED - 1) * abs(least):
                log.info("stopped at step %s: the loss has diverged", step)
                break
    return rates, losses


def first_state(program: Program) -> TrainState:
    """The state before the first step, with the weights that the experiment starts from."""
    state = program.init()
    if not program.experiment.initialize_from.run:
        return state
    return with_weights(program, state, best_weights(program, lambda activity: None).state)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """`suggestion`, `lowest` and `smoothed` of a curve; all losses are finite.

    The slope is that of the smoothed loss over the logarithm of the rate, up to its lowest point.
    For it a loss counts at most as the largest of the first ones: divergence would dominate it.
    """
    first = max(losses[: max(len(losses) // 10, 3)])
    smoothed = smooth(np.minimum(losses, first))
    lowest = int(smoothed.argmin())
    suggestion = None
    if lowest > 0:
        slopes = np.gradient(smoothed, np.log10(rates))
        suggestion = rates[int(slopes[: lowest + 1].argmin())]
    return {"suggestion": suggestion, "lowest": rates[lowest], "smoothed": smoothed.tolist()}


def smooth(losses: np.ndarray) -> np.ndarray:
    """A weighted mean of each loss [N] and those around it, a tenth of all on either side."""
    window = np.hanning(2 * max(len(losses) // 10, 1) + 3)
    weights = np.convolve(np.ones(len(losses)), window, "same")
    return np.convolve(losses, window, "same") / weights


def draw(result: dict[str, Any], file: Path) -> None:
    """Draws the losses over the learning rate, with the suggestion."""
    from matplotlib.figure import Figure  # here: slow to import

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    count = len(result["smoothed"])
    rates = result["rates"][:count]
    smoothed = result["smoothed"]
    axes.plot(rates, result["losses"][:count], color="C0", alpha=0.3, label="loss of each step")
    axes.plot(rates, smoothed, color="C0", label="smoothed")
    if result["suggestion"] is not None:
        place = rates.index(result["suggestion"])
        label = f"falls fastest at {result['suggestion']:.2g}"
        axes.plot(rates[place], smoothed[place], "o", color="C1", label=label)
    lowest = min(result["losses"][:count])
    room = 0.1 * (max(smoothed) - lowest) + 1e-9
    axes.set_ylim(lowest - room, max(smoothed) + 5 * room)  # what diverges leaves the picture
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
