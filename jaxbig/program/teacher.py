"""The teacher of `Distill`: a run's model, whose parameters a train step gets beside its batch."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from jaxbig.config.deserialize import classes_of, load_run
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.distributed.sharding import parameter_shardings
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Objective, sums_of
from jaxbig.objectives.distill import Distill
from jaxbig.objectives.dpo import DPO
from jaxbig.program.apply_model import make_apply

TEACHER = "teacher"
"""The name beside a batch's fields under which a train step gets the teacher's variables."""


def without_teacher(objective: Objective) -> Objective:
    """The objective that needs no other run."""
    if isinstance(objective, DPO):
        return dataclasses.replace(objective, reference="")
    return objective.objective if isinstance(objective, Distill) else objective


def find_teacher(experiment: Experiment) -> Experiment | None:
    """The teacher's experiment, if there is a teacher and its run is here.

    Raises:
      Refused: its experiment cannot be rebuilt.
    """
    objective = experiment.objective
    if not isinstance(objective, Distill):
        return None
    folder = Path(objective.teacher)
    if not on_process_zero(lambda: (folder / "run.json").exists()):
        return None
    return load_run(folder, classes_of(experiment).values())


def abstract_teacher(
    teacher: Experiment,
    objective: Distill,
    zeros: Callable[[], Batch],
    *,
    mesh: jax.sharding.Mesh,
    rules: Any,
) -> Mapping[str, Any]:
    """Shape, dtype and sharding of each of the teacher's variables.

    Args:
      teacher: its experiment.
      objective: of the run, which calls the teacher's model as it calls its own.
      zeros: makes a batch of the run's data.
      mesh: of the run.
      rules: of its logical axes.

    Raises:
      Refused: the teacher does not fit the data, such as for another number of classes.
    """
    key = jax.random.key(0)

    def init() -> Any:
        batch = zeros()
        model = nn.init(
            lambda forward: sums_of(objective, forward, batch, key=key, train=False), teacher.model
        )
        return dict(model({"params": key, "default": key}))

    try:
        boxed = jax.eval_shape(init)
    except Refused as error:
        raise Refused(f"--objective.teacher {objective.teacher} does not fit: {error}") from None
    shardings = parameter_shardings(boxed, mesh, rules)
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        jax.eval_shape(lambda: nn.meta.unbox(init())),
        shardings,
    )


def teacher_of(teacher: Experiment | None, variables: Any) -> Any:
    """The function that `Distill` calls; None without variables."""
    if teacher is None or variables is None:
        return None

    def answer(*arguments: Any, **named: Any) -> Any:
        return make_apply(teacher, lambda model: model(*arguments, **named))(variables)

    return answer
