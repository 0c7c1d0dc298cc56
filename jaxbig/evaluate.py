"""A run's last good checkpoint on the evaluation split; reads the run's folder and writes nothing."""

from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, identity, to_json
from jaxbig.loop import evaluate, open_checkpoints
from jaxbig.mesh import activate
from jaxbig.step import make_program
from jaxbig.workdir import check_same, read_run


def evaluate_run(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """{`step`, `metrics`, `state_sha256`}; `Refused` if there is no run, or one of another model or data."""
    run = read_run(workdir)
    checkpoints = open_checkpoints(experiment, workdir)
    if run is None or not checkpoints.steps():
        raise Refused(f"{workdir} holds no checkpoint: train first, or name the run's folder with --workdir.")
    program = make_program(experiment)
    fixed = identity(to_json(experiment), run["data_identity"])
    check_same(run, {name: fixed[name] for name in ("model", "objective")}, workdir)
    with activate(program.mesh):
        fixed = {"data_identity": experiment.data.prepare()}
        check_same(run, fixed, workdir)
        restored = checkpoints.restore(program.abstract)
        assert restored is not None
        source = experiment.data.source("eval")
        metrics = evaluate(experiment, program, restored.state, source)
    return {"step": restored.step, "metrics": metrics, "state_sha256": restored.state_sha256}
