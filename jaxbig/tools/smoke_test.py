"""`train --smoke`: two steps and an evaluation of a small sibling, on made-up records where the data is not here."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.tools.shrink import replaced
from jaxbig.train.run_directory import read_run

log = logging.getLogger("jaxbig")
EVALUATED = 2
"""Steps, and batches of the evaluation."""
PARAMETERS, ROWS, LENGTH, DEPTH = 2**21, 8, 64, 2
"""What a sibling has at most of each, where its mesh and its widths allow it."""


def smoke(experiment: Experiment) -> Experiment:
    """The sibling; what it is fed is what the experiment is fed, if that is here."""
    changes: dict[str, Any] = {"batch": min(experiment.data.batch, ROWS * jax.device_count())}
    data: Any = experiment.data
    if data.cuts_to_length:
        changes["length"] = min(data.length, LENGTH)
    try:
        data.prepare()
    except Refused as error:
        data = made_up(data)
        log.warning("on made-up records: %s", error)
    data = replaced(data, changes)
    layers = {"depth": min(getattr(experiment.model, "depth", 1), DEPTH), "remat_group": 1}
    layers |= {"stages": (1,) * len(getattr(experiment.model, "stages", ()))}
    few: dict[str, Any] = {
        "steps": EVALUATED,
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    }
    few |= {"evaluate_batches": EVALUATED, "accumulate": 1, "initialize_from": InitializeFrom()}
    small = dataclasses.replace(
        experiment, model=replaced(experiment.model, layers), data=data, **few
    )
    while (
        sum(leaf.size for leaf in jax.tree.leaves(make_program(small).abstract.params)) > PARAMETERS
    ):
        model = small.model
        widths = {
            name: value for name in ("width", "mlp_width") if (value := getattr(model, name, None))
        }
        if not widths or any(width % 2 for width in widths.values()):
            break
        narrower = dataclasses.replace(
            small, model=replaced(model, {n: w // 2 for n, w in widths.items()})
        )
        try:
            make_program(narrower)
        except Refused:  # its heads no longer divide it, or it no longer divides over the mesh
            break
        small = narrower
    return small


def made_up(data: Data) -> Data:
    """The same data set of records that are made up; `Refused` if it is none of records."""
    make: Any = getattr(data, "synthetic", None)
    if make is None:
        raise Refused(f"{type(data).__name__} has no made-up records: prepare its own.")
    return make()


def emptied(folder: Path) -> Path:
    """The folder of a smoke test, with nothing of an earlier one in it; `Refused` if it holds anything else."""

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
