"""Whether a mesh changes the result: loss and every gradient of a step against one device."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.data.base import Rows
from jaxbig.data.stream import train_batch
from jaxbig.errors import Refused
from jaxbig.experiment import Experiment
from jaxbig.gradient import make_gradient
from jaxbig.mesh import Mesh, activate, put
from jaxbig.state import leaves
from jaxbig.step import Program, make_program


def check(experiment: Experiment, tolerance: float) -> dict[str, Any]:
    """A first batch's loss and gradient on the experiment's mesh and on one device, and how far they are apart.

    The gradient is that of the train step. Each leaf's error is the norm of the difference over the leaf's norm; `ok`
    if the loss and all leaves are within the tolerance.
    """
    if jax.device_count() == 1:
        raise Refused("there is one device, so nothing to compare: JAX_NUM_CPU_DEVICES=8 gives eight on a CPU.")
    if not 0 < tolerance < 1:
        raise Refused(f"--tolerance {tolerance}: it must be above 0 and below 1.")
    over = make_program(experiment)
    alone = make_program(dataclasses.replace(experiment, mesh=Mesh(data=1)), jax.devices()[:1])
    experiment.data.prepare()
    batch = train_batch(experiment.data.source("train"), experiment.seed, 0, experiment.data.batch)
    (loss, found), (expected_loss, expected) = step(over, batch), step(alone, batch)
    errors = apart(found, expected)
    worst = max(errors, key=lambda path: math.inf if math.isnan(errors[path]) else errors[path])
    of_loss = abs(loss - expected_loss) / max(abs(expected_loss), 1e-30)
    return {
        "mesh": dict(over.mesh.shape),
        "loss_relative_error": of_loss,
        "gradient_relative_error": errors[worst],
        "worst_parameter": worst,
        "tolerance": tolerance,
        "ok": of_loss < tolerance and errors[worst] < tolerance,
        "errors": errors,
    }


def step(program: Program, batch: Rows) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch at the initial parameters, and its gradient by path."""
    with activate(program.mesh):
        state, gradient = program.init(), make_gradient(program.experiment, program.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params)
        compiled = jax.jit(lambda *arguments: gradient(*arguments)[:2], out_shardings=(shardings, None))
        found, sums = compiled(state.params, state.variables, put(batch, program.mesh), jnp.int32(0))
        return float(sums["loss"].mean()), {path: np.asarray(leaf) for path, leaf in leaves(found).items()}


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """How far each leaf is from what is expected: norm of the difference over norm.

    A leaf whose gradient nearly cancels is measured against 1/300 of the whole: the rest of it is rounding.
    """
    least = math.sqrt(sum(float(np.linalg.norm(leaf)) ** 2 for leaf in expected.values())) / 300
    return {
        path: float(np.linalg.norm(found[path] - leaf)) / max(float(np.linalg.norm(leaf)), least, 1e-30)
        for path, leaf in expected.items()
    }
