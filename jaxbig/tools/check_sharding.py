"""Compares loss and gradients of a step on a mesh of simulated devices with those of one device."""

import dataclasses
import math
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import diff
from jaxbig.config.precision import Precision
from jaxbig.config.serialize import to_json
from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.placement import AXES
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.base import model_class
from jaxbig.program.gradient import make_gradient
from jaxbig.program.program import Program, make_program
from jaxbig.program.teacher import without_teacher
from jaxbig.tools.shrink import random_batch, small_program

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
"""Of the loss, and of each gradient, relative: far above what they round to."""
ROWS = (16, 64)
"""Of the batches that are compared: the partitioner splits a program by its sizes, and may be wrong
in one alone."""
NUMBERS = 2**20
"""Of a batch's inputs, beyond which the larger one is left out."""
DEVICES = 256
"""More than these one CPU need not play: what is split, not in how many, makes a gradient wrong."""


def devices_for(mesh: Mesh) -> int:
    """How many devices a mesh asks for; with an axis of -1 up to 8, or up to what
    JAX_NUM_CPU_DEVICES says. `Refused` if they cannot be, or are too many."""
    sizes = [getattr(mesh, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size > 0)
    rest = int(os.environ.get("JAX_NUM_CPU_DEVICES", 8)) // fixed if -1 in sizes else 1
    count = fixed * max(rest, 1)
    mesh.sizes(count)
    if count > DEVICES:
        raise Refused(
            f"the mesh asks for {count:,} devices, and {DEVICES} are the most: "
            f"give the same axes less each."
        )
    return count


def use_cpu(mesh: Mesh) -> None:
    """Gives JAX as many CPU devices as a mesh asks for; must be called before a device is
    touched."""
    count = devices_for(mesh)
    for name, value in (("jax_platforms", "cpu"), ("jax_num_cpu_devices", count)):
        if getattr(jax.config, name) != value:
            jax.config.update(name, value)


def check(experiment: Experiment, tolerance: float | None = None) -> dict[str, Any]:
    """The loss and gradient of a batch of random numbers on the experiment's mesh and on one
    device, and how far they are apart; of a shrunken copy where the experiment is large, and in
    float64 where its model can compute in that. The worse of two sizes of batch is given.

    The gradient is that of the train step. Each leaf's error is the norm of the difference over the
    leaf's norm; `ok` if the loss and all leaves are within the tolerance.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise Refused(f"--tolerance {tolerance}: it must be above 0 and below 1.")
    if devices_for(experiment.mesh) == 1:
        raise Refused(
            "the mesh is one device, so there is nothing to compare: "
            "give an axis more, as in --mesh.data 8."
        )
    inputs = experiment.data.spec()["inputs"]
    every = ROWS if inputs.size // inputs.shape[0] * ROWS[-1] <= NUMBERS else ROWS[:1]
    found = [compared(experiment, rows, tolerance) for rows in every]
    return max(found, key=lambda each: (not each["ok"], each["gradient_relative_error"]))


def compared(experiment: Experiment, rows: int, tolerance: float | None) -> dict[str, Any]:
    """The same for a batch of `rows` rows."""
    if model_class(experiment.model).with_dtype(experiment.model, "float64") is not None:
        try:
            return compared_in("float64", experiment, rows, tolerance)
        except TypeError:  # a model that makes float32 numbers of its own cannot mix the two
            pass
    return compared_in("float32", experiment, rows, tolerance)


def compared_in(
    dtype: str, experiment: Experiment, rows: int, tolerance: float | None
) -> dict[str, Any]:
    tolerance = tolerance or TOLERANCE[dtype]
    model = model_class(experiment.model).with_dtype(experiment.model, dtype)
    experiment = dataclasses.replace(
        experiment,
        model=experiment.model if model is None else model,
        objective=without_teacher(experiment.objective),
        precision=Precision(),  # rounding is not what is compared
        offload=False,
    )
    devices = jax.devices()[: devices_for(experiment.mesh)]
    with jax.enable_x64(dtype == "float64"):
        over = small_program(experiment, devices, rows)
        alone = make_program(dataclasses.replace(over.experiment, mesh=Mesh(data=1)), devices[:1])
        batch = random_batch(over.experiment)
        loss, found = step(over, batch)
        expected_loss, expected = step(alone, batch)
    errors = apart(found, expected)
    worst = max(errors, key=lambda path: math.inf if math.isnan(errors[path]) else errors[path])
    of_loss = abs(loss - expected_loss) / max(abs(expected_loss), 1e-30)
    return {
        "mesh": dict(over.mesh.shape),
        "dtype": dtype,
        "changed": diff(to_json(experiment), to_json(over.experiment)),
        "loss_relative_error": of_loss,
        "gradient_relative_error": errors[worst],
        "worst_parameter": worst,
        "tolerance": tolerance,
        "ok": of_loss < tolerance and errors[worst] < tolerance,
        "errors": errors,
    }


def step(program: Program, batch: Rows) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch near the initial parameters, and its gradient by path."""
    with program.activate():
        state: Any = program.init()
        params = perturbed(state.params)
        gradient = make_gradient(program.experiment, program.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params)
        compiled = jax.jit(
            lambda *arguments: gradient(*arguments)[:2], out_shardings=(shardings, None)
        )
        found, sums = compiled(
            params, state.variables, device_put_batch(batch, program.mesh), jnp.int32(0)
        )
        return float(sums["loss"].mean()), {
            path: np.asarray(leaf) for path, leaf in flatten_with_paths(found).items()
        }


def perturbed(params: Any) -> Any:
    """The parameters with small random numbers for those that are all 0: a branch whose gate is 0
    at first would hide a wrong gradient."""

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        if np.any(np.asarray(leaf)):
            return leaf
        draw = np.random.default_rng(zlib.crc32(path_name(path).encode()))
        noise = 0.1 * draw.standard_normal(leaf.shape).astype(leaf.dtype)
        return jax.device_put(noise, leaf.sharding)

    return jax.tree_util.tree_map_with_path(move, params)


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """How far each leaf is from what is expected: norm of the difference over norm.

    A leaf whose gradient nearly cancels is measured against 1/300 of the whole: the rest of it is
    rounding.
    """
    least = math.sqrt(sum(float(np.linalg.norm(leaf)) ** 2 for leaf in expected.values())) / 300
    return {
        path: float(np.linalg.norm(found[path] - leaf))
        / max(float(np.linalg.norm(leaf)), least, 1e-30)
        for path, leaf in expected.items()
    }
