"""Evaluates a checkpoint of a run; only reads its directory; prepares data if missing."""

import functools
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.data.core.dataset import open_split
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.watchdog import COMPILES, OPENS, PREPARES, Heartbeat, watchdog
from jaxbig.errors import Refused
from jaxbig.objectives.metric import Collector
from jaxbig.program.program import make_program
from jaxbig.program.state import TrainState
from jaxbig.train.passes import evaluate
from jaxbig.train.resume import differences, prepare
from jaxbig.train.run_description import read_run
from jaxbig.train.trainer import open_checkpoints


def evaluate_run(
    experiment: Experiment,
    workdir: Path,
    which: str = "last",
    split: str = "eval",
    *,
    collectors: Collection[Collector] = (),
) -> dict[str, Any]:
    """Evaluates a checkpoint in a directory: the first good one.

    Args:
      experiment: gives the model and the data; those of the run.
      workdir: the run directory.
      which: "last", "best" or the number of a step, as `CheckpointManager.choose` takes it.
      split: "eval" or "test".
      collectors: get the outputs of each batch.

    Returns:
      `step`, `metrics` and `state_sha256`.

    Raises:
      Refused: the directory holds no run, no such checkpoint, or another model or data.
    """
    given = {"workdir": str(workdir), "step": which, "split": split}
    assert_same_on_all({**given, **dict(flat(to_json(experiment)))})
    with watchdog(experiment.guard.stuck_after) as heartbeat:
        return evaluate_saved(
            experiment, workdir, which, split=split, collectors=collectors, heartbeat=heartbeat
        )


def evaluate_saved(
    experiment: Experiment,
    workdir: Path,
    which: str,
    *,
    split: str,
    collectors: Collection[Collector],
    heartbeat: Heartbeat,
) -> dict[str, Any]:
    """`evaluate_run`, calling `heartbeat` with (step, activity)."""
    heartbeat(0, "reads run.json")
    run = on_process_zero(lambda: read_run(workdir))
    checkpoints = open_checkpoints(experiment, workdir, functools.partial(heartbeat, 0))
    if run is None or not on_process_zero(checkpoints.steps):
        raise Refused(
            f"{workdir} holds no checkpoint: train first, or name the run's folder with --workdir."
        )
    steps = checkpoints.choose(which)
    heartbeat(0, PREPARES)
    program = make_program(experiment)
    described = to_json(experiment)
    # these determine the state's shape
    fixed = {name: described[name] for name in ("model", "objective", "optimizer")}
    if lines := differences(run, fixed) or differences(run, {"data_identity": prepare(experiment)}):
        raise Refused(
            f"{workdir} holds a run of another model or data ({'; '.join(lines)}): give the "
            f"options it was trained with, or another --workdir."
        )
    heartbeat(0, OPENS)
    source = open_split(experiment.data, split)
    with program.activate():
        fields = ("params", "variables")
        wanted = {name: getattr(program.abstract, name) for name in fields}
        restored = checkpoints.restore(wanted, only=fields, steps=steps)
        assert restored is not None
        state = TrainState(step=None, opt_state=None, **restored.state)
        activities = itertools.chain([COMPILES], itertools.repeat("evaluates"))

        def before_batch() -> None:
            heartbeat(restored.step, next(activities))

        metrics = evaluate(program, state, source, heartbeat=before_batch, collectors=collectors)
    return {"step": restored.step, "metrics": metrics, "state_sha256": restored.state_sha256}
