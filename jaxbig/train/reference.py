"""The log-probabilities of `DPO`'s reference: computed once, and kept in the run's folder."""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.deserialize import classes_of, load_run
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.core.dataset import open_split
from jaxbig.data.preferences import REFERENCE_FILE, Preferences, ReferenceScores
from jaxbig.distributed.multihost import on_process_zero
from jaxbig.distributed.sharding import batch_sharding, replicated
from jaxbig.distributed.watchdog import Heartbeat
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch
from jaxbig.objectives.dpo import DPO
from jaxbig.program.apply_model import make_apply
from jaxbig.program.program import Program, make_program
from jaxbig.program.state import TrainState
from jaxbig.train.passes import limited, step_over
from jaxbig.train.teacher import best_checkpoint, check_is_best

log = logging.getLogger("jaxbig")
REFERENCE = "reference"
"""The name of the reference's digest in a run's identity."""


def reference_identity(experiment: Experiment) -> dict[str, Any]:
    """What a run's identity says of its reference: the step and digest of its best checkpoint.

    Raises:
      Refused: there is none.
    """
    objective = experiment.objective
    if not isinstance(objective, DPO) or not objective.reference:
        return {}
    found = best_checkpoint(objective.reference)
    if found is None:
        raise Refused(
            f"--objective.reference {objective.reference!r}: there is no run with a checkpoint: "
            f"train it first, or name another folder."
        )
    return {REFERENCE: found}


def give_reference(
    program: Program,
    workdir: Path | None,
    fixed: dict[str, Any],
    *,
    start: TrainState | None = None,
    heartbeat: Heartbeat = lambda step, activity: None,
) -> bool:
    """Gives the data of a run of `DPO` the log-probabilities under the reference.

    They are those kept in the run's folder, if they are of this data and reference; else those of
    another run, or of the run's first state.

    Args:
      program: of the run, whose data is prepared.
      workdir: the run's folder; None: it has none.
      fixed: `data_identity`, and what `reference_identity` returned for the run.
      start: the run's first state; None: it is not known.
      heartbeat: called with (step, activity).

    Returns:
      Whether they are known now, or not needed.

    Raises:
      Refused: the reference does not fit the data, or is no longer what the run began with.
    """
    experiment = program.experiment
    objective = experiment.objective
    data: Any = experiment.data
    if not isinstance(objective, DPO) or not isinstance(data, Preferences):
        return True
    of = {name: fixed.get(name) for name in ("data_identity", REFERENCE)}
    if workdir is not None and on_process_zero(lambda: _is_kept(workdir, of)):
        data.know(ReferenceScores.read(workdir))
        return True
    data.know(None)
    if objective.reference:
        now = reference_identity(experiment)
        if now[REFERENCE] != of[REFERENCE]:
            raise Refused(
                f"--objective.reference {objective.reference}: its best checkpoint is another than "
                f"the one this run began with ({now[REFERENCE]}, and not {of[REFERENCE]})."
            )
        there, state = _restored(program)
    elif start is not None:
        there = program
        state = start
    else:
        return False
    heartbeat(0, "computes the reference")
    data.know(ReferenceScores(of, _scores(there, state, heartbeat)))
    return True


def assume_reference(experiment: Experiment, data_identity: str) -> None:
    """Gives data of `DPO` zeros for the reference, where steps are made for their time alone."""
    data = experiment.data
    if isinstance(data, Preferences):
        zeros = np.zeros((len(data.source("train")), 2), np.float32)
        data.know(ReferenceScores({"data_identity": data_identity}, {"train": zeros}))


def lost_reference(workdir: Path) -> Refused:
    """The error for a run whose kept log-probabilities are not there."""
    return Refused(
        f"{workdir / REFERENCE_FILE} is lost or of other data: it has the log-probabilities of the "
        f"weights that the run began with: copy it back, or begin again with another --workdir."
    )


def _is_kept(workdir: Path, of: dict[str, Any]) -> bool:
    kept = ReferenceScores.read(workdir)
    return kept is not None and kept.of == of


def check_reference(program: Program) -> None:
    """Raises `Refused` if the reference is another run whose model does not fit the data."""
    objective = program.experiment.objective
    if isinstance(objective, DPO) and objective.reference:
        _reference_program(program)


def _reference_program(program: Program) -> Program:
    """The program of the reference's model on the run's data and mesh."""
    experiment = program.experiment
    objective: Any = experiment.objective
    folder = Path(objective.reference)
    there = load_run(folder, classes_of(experiment).values()).replace(
        objective=objective,
        data=experiment.data,
        mesh=experiment.mesh,
        reproducible=0,
        accumulate=experiment.accumulate,
        initialize_from=InitializeFrom(),
        callbacks=(),
        metrics=(),
        evaluators=(),
    )
    try:
        return make_program(there, list(program.mesh.devices.flat))
    except Refused as error:
        raise Refused(f"--objective.reference {folder} does not fit: {error}") from None


def _restored(program: Program) -> tuple[Program, TrainState]:
    """The program of the reference, and its best weights."""
    objective: Any = program.experiment.objective
    found = _reference_program(program)
    fields = ("params", "variables")
    wanted = {name: getattr(found.abstract, name) for name in fields}
    checkpoints = CheckpointManager(Path(objective.reference) / "checkpoints")
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(wanted, only=fields, steps=checkpoints.choose("best"))
    check_is_best(restored, objective.reference, "--objective.reference")
    return found, TrainState(step=None, opt_state=None, **restored.state)


def _scores(program: Program, state: TrainState, heartbeat: Heartbeat) -> dict[str, np.ndarray]:
    """The log-probabilities of all answers under a state, float32 [N, 2] by split."""
    experiment = program.experiment
    objective: Any = experiment.objective
    rows = batch_sharding(program.mesh)
    at = jax.tree.map(lambda each: each.sharding, program.plain)
    step = jax.jit(
        functools.partial(_log_probabilities, experiment, objective),
        in_shardings=(at, dict.fromkeys(program.batch, rows)),
        out_shardings=(replicated(program.mesh), at.variables),
    )
    splits = ("train", "eval", *(["test"] if experiment.data.has_test() else []))
    found: dict[str, np.ndarray] = {}
    with program.activate():
        for split in splits:
            source = open_split(experiment.data, split)
            log.info("computing the reference's log-probabilities of %s: %d", split, len(source))
            parts = step_over(
                limited(program, None),
                step,
                state,
                source=source,
                heartbeat=lambda: heartbeat(0, "computes the reference"),
                should_stop=lambda: False,
            )
            found[split] = np.concatenate([part for (part,) in parts])[: len(source)]
    return found


def _log_probabilities(
    experiment: Experiment, objective: DPO, state: Any, batch: Batch
) -> tuple[jax.Array, Any]:
    apply = make_apply(
        experiment,
        lambda forward: objective.log_probabilities(forward, batch, train=False),
        list(state.variables),
    )
    return apply({"params": state.params, **state.variables})
