"""A run's last good checkpoint on the evaluation split; reads the run's folder and writes nothing."""

from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, flat, to_json
from jaxbig.guard import as_asked, as_saved
from jaxbig.loop import evaluate, open_checkpoints
from jaxbig.processes import agree, first
from jaxbig.resume import differences, prepare
from jaxbig.step import make_program
from jaxbig.workdir import read_run


def evaluate_run(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """{`step`, `metrics`, `state_sha256`}; `Refused` if there is no run, or one of another model or data."""
    agree({"workdir": str(workdir), **dict(flat(to_json(experiment)))})
    run, checkpoints = first(lambda: read_run(workdir)), open_checkpoints(experiment, workdir)
    if run is None or not first(checkpoints.steps):
        raise Refused(f"{workdir} holds no checkpoint: train first, or name the run's folder with --workdir.")
    program, described = make_program(experiment), to_json(experiment)
    fixed = {name: described[name] for name in ("model", "objective", "optimizer")}  # all that a state's shape tells
    if lines := differences(run, fixed) or differences(run, {"data_identity": prepare(experiment)}):
        raise Refused(
            f"{workdir} holds a run of another model or data ({'; '.join(lines)}): give the options it was trained "
            f"with, or another --workdir."
        )
    with program.activate():
        restored = checkpoints.restore(program.abstract, as_saved)
        assert restored is not None
        metrics = evaluate(program, as_asked(restored.state, program.abstract), experiment.data.source("eval"))
    return {"step": restored.step, "metrics": metrics, "state_sha256": restored.state_sha256}
