"""All that a run does before it compiles, without its effects: checks, and how it would start."""

from pathlib import Path
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import identity
from jaxbig.config.serialize import flat, to_json
from jaxbig.cost.memory import bytes_per_device
from jaxbig.cost.out_of_memory import check_memory
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.run_lock import check_free
from jaxbig.program.program import all_parameters, make_program
from jaxbig.train.epochs import describe_sizes
from jaxbig.train.passes import Evaluation, check_evaluators
from jaxbig.train.reference import check_reference, reference_identity
from jaxbig.train.resume import (
    another_run,
    check_first_state,
    check_length,
    differences,
    other_draws,
    prepare,
    unknown_run,
)
from jaxbig.train.run_description import read_run
from jaxbig.train.teacher import teacher_identity
from jaxbig.train.trainer import open_checkpoints


def dry_run(
    experiment: Experiment,
    workdir: Path,
    *,
    fork: bool = False,
    adopt: bool = False,
    resume_from: str = "",
) -> dict[str, Any]:
    """Checks a run up to its first compilation; writes nothing but caches of the data.

    Args:
      experiment: what would be trained.
      workdir: its run directory; it need not exist.
      fork: as `trainer.train` takes it.
      adopt: likewise.
      resume_from: likewise.

    Returns:
      `experiment`; `parameters`, their number; `devices`, `kind` and `mesh`; `data`, the sizes in
      words; `steps`; `bytes_per_device`, of the state and a batch; `workdir`; `start`: where
      it would start, in words.

    Raises:
      Refused: as the run would.
    """
    described = to_json(experiment)
    assert_same_on_all({"workdir": str(workdir), **dict(flat(described))})
    program = make_program(experiment)
    check_memory(program)
    on_process_zero(lambda: check_free(workdir))
    fixed = identity(described, prepare(experiment)) | teacher_identity(experiment)
    fixed |= reference_identity(experiment)
    check_reference(program)
    with program.activate():
        check_evaluators(Evaluation(program))
    data = experiment.data
    sizes = describe_sizes(data.source("train"), data.source("eval"), data.batch)
    run = on_process_zero(lambda: read_run(workdir, adopt))
    steps = open_checkpoints(experiment, workdir).choose(resume_from or "last", "--resume-from")
    lines = differences(run, fixed) + other_draws(run) if run else []
    if steps and lines and not fork:
        raise another_run(workdir, lines)
    if steps and run is None and not adopt:
        raise unknown_run(workdir)
    start = "from step 0"
    if steps and lines:
        start = f"from step 0, with the weights of the run there at step {steps[0]}"
    elif steps:
        check_length(experiment, workdir, steps[0])
        start = f"from step {steps[0]}"
    elif weights := check_first_state(program, workdir, run):
        start = f"from step 0, with the weights of {weights}"
    return {
        "experiment": described,
        "parameters": sum(leaf.size for leaf in all_parameters(program).values()),
        "devices": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "data": sizes,
        "steps": experiment.steps,
        "bytes_per_device": bytes_per_device(program)["total"],
        "workdir": str(workdir),
        "start": start,
    }
