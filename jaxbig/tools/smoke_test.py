"""`train --smoke`: two steps and an evaluation of a shrunken copy, on synthetic data if need be."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.distributed.placement import AXES
from jaxbig.errors import Refused
from jaxbig.models.base import model_class
from jaxbig.program.teacher import find_teacher, without_teacher
from jaxbig.tools.shrink import narrow_program
from jaxbig.train.run_description import read_run

log = logging.getLogger("jaxbig")
EVALUATED = 2
"""Steps, and batches of the evaluation."""
PARAMETERS = 2**21
"""The most parameters of the copy, if its widths can be halved that often."""
ROWS = 8
"""The most rows of a batch for each device."""
LENGTH = 64
"""The most positions of a row."""
SIDE = 96
"""The most pixels of a side of an image."""
DEPTH = 2
"""The most layers, or one for each of the mesh's stages."""


def smoke(experiment: Experiment) -> Experiment:
    """The shrunken copy of an experiment, with its data if that is present."""
    data = experiment.data
    try:
        data.prepare()
    except Refused as error:
        data = synthetic_data(data)
        experiment = experiment.replace(evaluators=())  # they may need more records, or others
        log.warning("on synthetic records: %s", error)
    data = dataclasses.replace(data, batch=min(data.batch, ROWS * jax.device_count()))
    if data.cuts_to_length:
        data = data.shorter(LENGTH)
    few: dict[str, Any] = {
        "steps": EVALUATED,
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "keep_every": 0,
        "keep_gb": 0.0,
    }
    few["evaluators"] = tuple(
        dataclasses.replace(each, evaluator=each.evaluator.standalone())
        for each in experiment.evaluators
    )
    few |= {"evaluate_batches": EVALUATED, "accumulate": 1, "initialize_from": InitializeFrom()}
    if find_teacher(experiment) is None:
        few["objective"] = without_teacher(experiment.objective)
    sizes = dict(zip(AXES, experiment.mesh.sizes(jax.device_count()), strict=True))
    depth = max(DEPTH, sizes["stage"])
    model = model_class(experiment.model).shallower(experiment.model, depth)
    small = dataclasses.replace(experiment, model=model, data=data.smaller(SIDE), **few)
    try:
        return narrow_program(small, None, PARAMETERS).experiment
    except Exception:  # a model may take images of one size alone; any other error comes again
        small = dataclasses.replace(small, data=data)
        return narrow_program(small, None, PARAMETERS).experiment


def synthetic_data(data: Data) -> Data:
    """The data set with synthetic records; `Refused` if it has none."""
    make: Any = getattr(data, "synthetic", None)
    if make is None:
        raise Refused(f"{type(data).__name__} has no synthetic records: prepare its own.")
    return make()


def emptied(folder: Path) -> Path:
    """The folder of a smoke test, emptied of an earlier one.

    Raises:
      Refused: if it contains anything else.
    """

    def empty() -> None:
        run = read_run(folder)
        if (
            run is not None
            and run["experiment"].get("evaluate_batches") == EVALUATED == run["experiment"]["steps"]
        ):
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise Refused(
                f"{folder} holds something else than a smoke test: give another --workdir."
            )

    on_process_zero(empty)
    return folder
