"""Restores the teacher of `Distill` from its run, and says which checkpoint that is."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from jaxbig.adapt import lora
from jaxbig.adapt.other_run import adapters_of, place_of, plain_leaves
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.manager import CheckpointManager, Restored, shape_and_dtype
from jaxbig.config.deserialize import classes_of, load_run
from jaxbig.config.experiment import Experiment
from jaxbig.config.experiment_files import command_for
from jaxbig.config.serialize import to_json
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.distributed.sharding import replicated
from jaxbig.errors import Refused
from jaxbig.objectives.distill import Distill, no_teacher
from jaxbig.program.teacher import TEACHER


def teacher_identity(experiment: Experiment) -> dict[str, Any]:
    """What a run's identity says of its teacher: the step and digest of its best checkpoint.

    Raises:
      Refused: there is none.
    """
    objective = experiment.objective
    if not isinstance(objective, Distill):
        return {}
    found = best_checkpoint(objective.teacher)
    if found is None:
        raise no_teacher(objective.teacher, command_for(Path(objective.teacher)))
    return {TEACHER: found}


def best_checkpoint(folder: str) -> dict[str, Any] | None:
    """The step and digest of the best checkpoint of another run; None if there is none."""
    checkpoints = CheckpointManager(Path(folder) / "checkpoints")

    def read() -> dict[str, Any] | None:
        steps = checkpoints.choose("best") if checkpoints.steps() else []
        manifest = checkpoints.manifest(steps[0]) if steps else None
        return manifest and {name: manifest[name] for name in ("step", "state_sha256")}

    return on_process_zero(read)


def check_is_best(restored: Restored, folder: str, option: str) -> None:
    """Raises `Refused` if another checkpoint than the best of another run was restored.

    Args:
      restored: of the run in that folder.
      folder: the run's.
      option: that names it.
    """
    best = best_checkpoint(folder) or {}
    if (restored.step, restored.state_sha256) != (best.get("step"), best.get("state_sha256")):
        raise Refused(
            f"{option} {folder}: its best checkpoint, of step {best.get('step')}, is corrupt, so "
            f"it is not what this run is named after: bring back a copy, or train it again."
        )


def restore_teacher(experiment: Experiment, abstract: Any, mesh: jax.sharding.Mesh) -> Any:
    """The teacher's variables, from its best checkpoint.

    Args:
      experiment: whose objective is `Distill`.
      abstract: what `abstract_teacher` returned.
      mesh: of the run.
    """
    objective = experiment.objective
    assert isinstance(objective, Distill)
    folder = Path(objective.teacher)
    scale = lora.scale_of(to_json(load_run(folder, classes_of(experiment).values())))
    choose = functools.partial(_leaves_of, abstract, mesh, objective.teacher)
    restored = CheckpointManager(folder / "checkpoints").restore_some(choose, best=True)
    if restored is None:
        raise no_teacher(objective.teacher, command_for(Path(objective.teacher)))
    check_is_best(restored, objective.teacher, "--objective.teacher")
    found = plain_leaves(restored.state, scale)
    flat = {
        tuple(path.replace("variables/", "", 1).split("/")): leaf for path, leaf in found.items()
    }
    cast = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in flat.items()}
    return unflatten_dict(cast)


def _leaves_of(
    abstract: Any, mesh: jax.sharding.Mesh, folder: str, shapes: dict[str, str]
) -> dict[str, Any]:
    """The leaves of the teacher's state to restore, with shape, dtype and sharding."""
    wanted: dict[str, Any] = {}
    for path, leaf in flatten_with_paths(abstract).items():
        collection, _, name = path.partition("/")
        own = path if collection == "params" else f"variables/{path}"
        there = place_of(name, shapes) if collection == "params" else own
        if there not in shapes or shape_and_dtype(shapes[there])[0] != leaf.shape:
            raise Refused(
                f"--objective.teacher {folder}: its checkpoint has "
                f"{shapes.get(str(there), 'nothing')} for {own} {list(leaf.shape)}: "
                f"it needs inputs of another shape than the data has."
            )
        wanted[there] = jax.ShapeDtypeStruct(
            *shape_and_dtype(shapes[there]), sharding=leaf.sharding
        )
        for adapter in adapters_of(name, shapes) if collection == "params" else ():
            whole = replicated(mesh)
            wanted[adapter] = jax.ShapeDtypeStruct(
                *shape_and_dtype(shapes[adapter]), sharding=whole
            )
    return wanted
