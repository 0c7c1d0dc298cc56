"""`train --smoke`: two steps and an evaluation of a small sibling, on made-up records where the data is not here."""

import dataclasses
import logging
from typing import Any

import jax

from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, InitializeFrom
from jaxbig.sibling import replaced
from jaxbig.step import make_program

log = logging.getLogger("jaxbig")
PARAMETERS, ROWS, LENGTH, DEPTH = 2**21, 8, 64, 2
"""What a sibling has at most of each, where its mesh and its widths allow it."""


def smoke(experiment: Experiment) -> Experiment:
    """The sibling; what it is fed is what the experiment is fed, if that is here."""
    changes: dict[str, Any] = {"batch": min(experiment.data.batch, ROWS * jax.device_count())}
    changes |= {"length": min(getattr(experiment.data, "length", 1), LENGTH)}
    made_up = getattr(experiment.data, "made_up", None)
    data: Any = experiment.data
    try:
        data.prepare()
    except Refused as error:
        if made_up is None:
            raise
        log.warning("on made-up records: %s", error)
        data = made_up()
    data = replaced(data, changes)
    layers = {"depth": min(getattr(experiment.model, "depth", 1), DEPTH), "remat_group": 1}
    layers |= {"stages": (1,) * len(getattr(experiment.model, "stages", ()))}
    few: dict[str, Any] = {"steps": 2, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2}
    few |= {"evaluate_batches": 2, "accumulate": 1, "initialize_from": InitializeFrom()}
    small = dataclasses.replace(experiment, model=replaced(experiment.model, layers), data=data, **few)
    while sum(leaf.size for leaf in jax.tree.leaves(make_program(small).abstract.params)) > PARAMETERS:
        model = small.model
        widths = {name: value for name in ("width", "mlp_width") if (value := getattr(model, name, None))}
        if not widths or any(width % 2 for width in widths.values()):
            break
        narrower = dataclasses.replace(small, model=replaced(model, {n: w // 2 for n, w in widths.items()}))
        try:
            make_program(narrower)
        except Refused:  # its heads no longer divide it, or it no longer divides over the mesh
            break
        small = narrower
    return small
