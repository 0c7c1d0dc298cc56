"""What can be known of an experiment without training it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.config.deserialize import from_run, modules_of
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import to_json
from jaxbig.cost.hardware import parse_topology
from jaxbig.errors import Refused
from jaxbig.planning import planner
from jaxbig.system.json_files import write_json
from jaxbig.tools import check_causes, check_sharding
from jaxbig.tools.describe import show
from jaxbig.tools.inspect_batch import look
from jaxbig.train.run import check_experiment


def describe(experiment: Experiment) -> dict[str, Any]:
    """An experiment's parameters and their sharding, and bytes on each device; no data is read.

    Returns:
      What `jaxbig show --json` prints, and `table`: a row a parameter, for a data frame.

    Raises:
      Refused: the experiment is invalid, or does not fit the devices.
    """
    check_experiment(experiment)
    return show(experiment)


def plan(
    experiment: Experiment, topology: str, *, slices: int = 1, timeout: float = 1800.0
) -> dict[str, Any]:
    """Memory, FLOPs, collectives and time of a step on hardware that is not attached.

    It compiles in a child process, so classes of your own need the command line: `jaxbig plan
    FILE --topology ...`.

    Args:
      experiment: what is planned; no data is read.
      topology: TPUs and their layout, as v5p:4x4x8, or GPUs, as h100:64.
      slices: number of such TPU slices.
      timeout: seconds that the compiler may take.

    Returns:
      What `jaxbig plan --json` prints: `memory`, `fits`, `step_seconds`, `mfu`, ... If it does not
      fit, `proposal` is a plan with options that does, or None.

    Raises:
      Refused: the topology is unknown, or the experiment does not fit it.
      Failed: the compiler fails.
    """
    check_experiment(experiment)
    hardware = parse_topology(topology, slices)
    with saved(experiment, "plan") as folder:
        command = ["plan", folder, "--topology", topology, "--slices", str(slices)]
        return planner.plan(command, experiment, hardware, timeout, lambda text: None)


def check(experiment: Experiment, *, tolerance: float | None = None) -> dict[str, Any]:
    """Asks what changes what, and compares loss and gradients on the experiment's mesh with those
    of one device, on a CPU.

    A child process does it if JAX has fewer devices of the CPU here.

    Args:
      experiment: what is checked; no data is read, and a large one is shrunk.
      tolerance: of the loss and of each gradient, relative; None: 1e-8 in float64, else 1e-4.

    Returns:
      What `jaxbig check --json` prints: `ok`, `causes`, and unless the mesh is one device
      `loss_relative_error`, `gradient_relative_error`, `worst_parameter`, ...

    Raises:
      Refused: the experiment is invalid, or the mesh is one device and a tolerance is given.
    """
    check_experiment(experiment)
    experiment.check()
    count = check_sharding.devices_for(experiment.mesh)
    if jax.default_backend() == "cpu" and jax.device_count() >= count:
        found = check_causes.check_all(experiment, tolerance)
        return {name: value for name, value in found.items() if name != "errors"}
    with saved(experiment, "check") as folder:
        words = [] if tolerance is None else ["--tolerance", str(tolerance)]
        child = subprocess.run(
            [sys.executable, "-m", "jaxbig", "check", folder, "--json", *words],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    if child.stdout.startswith("{"):
        return json.loads(child.stdout)
    raise Refused((child.stderr.strip().splitlines() or [""])[-1].removeprefix("jaxbig: "))


def inspect_batch(experiment: Experiment, step: int = 0, *, split: str = "train") -> "Batch":
    """What the model sees: a batch as the objective gets it, after all augmentation.

    Args:
      experiment: gives the data, which is read, and the seed.
      step: the number of steps before; the batch is that of the next step.
      split: train or eval.

    Returns:
      The arrays by field, and `summary`; a notebook shows a batch of images as a picture.

    Raises:
      Refused: there is no such step or split, or the data is missing.
    """
    check_experiment(experiment)
    experiment.check()
    experiment.data.prepare()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batch.png"
        summary, arrays = look(experiment, step, split, 1, file)
        picture = file.read_bytes() if summary["picture"] else None
    return Batch(arrays, summary | {"picture": None}, picture)


class Batch(dict[str, np.ndarray]):
    """The arrays of a batch by field, such as `inputs` and `targets`.

    Attributes:
      summary: what `jaxbig data inspect --json` prints: `fields`, `classes`, `rows`, ...
      picture: a PNG file of its images, None if it has none.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], summary: dict[str, Any], picture: bytes | None
    ):
        super().__init__(arrays)
        self.summary = summary
        self.picture = picture

    def _repr_png_(self) -> bytes | None:
        return self.picture

    def __repr__(self) -> str:
        lines = [
            f"{each['field']}: {each['dtype']} {each['shape'] or 'scalar'}, "
            f"{each['least']:.4g} to {each['greatest']:.4g}"
            for each in self.summary["fields"]
        ]
        lines += [", ".join(f"{k} {v!r}" for k, v in row.items()) for row in self.summary["rows"]]
        return "\n".join(lines)


@contextlib.contextmanager
def saved(experiment: Experiment, command: str) -> Iterator[str]:
    """A folder with the experiment, for a child process; raises if that could not rebuild it."""
    experiment = experiment.replace(callbacks=())
    described = {"experiment": to_json(experiment), "modules": modules_of(experiment)}
    try:
        from_run(described)
    except Refused as error:
        raise Refused(
            f"{command} needs a child process, which has the classes of jaxbig alone ({error}): "
            f"put the experiment in a file and call `jaxbig {command} FILE`."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "run.json", described)
        yield folder
