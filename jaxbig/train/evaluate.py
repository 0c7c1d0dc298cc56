"""A run's last good checkpoint on the evaluation split; reads the run's folder and writes nothing."""

import functools
import itertools
from pathlib import Path
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.watchdog import COMPILES, OPENS, PREPARES, Heartbeat, watchdog
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.program.state import TrainState
from jaxbig.train.resume import differences, prepare
from jaxbig.train.run_directory import read_run
from jaxbig.train.trainer import evaluate, open_checkpoints


def evaluate_run(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """{`step`, `metrics`, `state_sha256`}; `Refused` if there is no run, or one of another model or data."""
    assert_same_on_all({"workdir": str(workdir), **dict(flat(to_json(experiment)))})
    with watchdog(experiment.guard.stuck_after) as at:
        return evaluate_saved(experiment, workdir, at)


def evaluate_saved(experiment: Experiment, workdir: Path, at: Heartbeat) -> dict[str, Any]:
    """The same; tells what it does."""
    at(0, "reads run.json")
    run, tell = on_process_zero(lambda: read_run(workdir)), functools.partial(at, 0)
    checkpoints = open_checkpoints(experiment, workdir, tell)
    if run is None or not on_process_zero(checkpoints.steps):
        raise Refused(
            f"{workdir} holds no checkpoint: train first, or name the run's folder with --workdir."
        )
    at(0, PREPARES)
    program, described = make_program(experiment), to_json(experiment)
    fixed = {
        name: described[name] for name in ("model", "objective", "optimizer")
    }  # all that a state's shape tells
    if lines := differences(run, fixed) or differences(run, {"data_identity": prepare(experiment)}):
        raise Refused(
            f"{workdir} holds a run of another model or data ({'; '.join(lines)}): give the options it was trained "
            f"with, or another --workdir."
        )
    with program.activate():
        fields = ("params", "variables")
        wanted = {name: getattr(program.abstract, name) for name in fields}
        restored = checkpoints.restore(wanted, only=fields)
        assert restored is not None
        state = TrainState(step=None, opt_state=None, **restored.state)
        at(0, OPENS)
        source, doing = (
            experiment.data.source("eval"),
            itertools.chain([COMPILES], itertools.repeat("evaluates")),
        )
        metrics = evaluate(program, state, source, lambda: at(restored.step, next(doing)))
    return {"step": restored.step, "metrics": metrics, "state_sha256": restored.state_sha256}
