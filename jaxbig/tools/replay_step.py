"""Replays one step of a run exactly, from the checkpoint before it; writes nothing."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.checkpoint.digest import digests
from jaxbig.checkpoint.manager import CheckpointManager, CorruptCheckpointError
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import identity
from jaxbig.config.serialize import flat, to_json
from jaxbig.data.core.dataset import Rows
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.program.bad_steps import FAULT, as_asked, as_saved
from jaxbig.program.program import Program, make_program
from jaxbig.program.teacher import TEACHER
from jaxbig.tools.nan_origin import bad_inputs, first_bad
from jaxbig.train.bad_step_policy import BadStepHandler, left_out
from jaxbig.train.batch_loader import host_batches
from jaxbig.train.reference import REFERENCE, give_reference, lost_reference
from jaxbig.train.resume import differences, initialize, other_draws, prepare
from jaxbig.train.run_description import read_run
from jaxbig.train.trainer import StepWithTeacher, compile_step, open_checkpoints


def replay(experiment: Experiment, workdir: Path, step: int) -> dict[str, Any]:
    """{`step`, `from`: the step it was made from, `metrics`, `state_sha256`: after it,
    `saved_sha256`: what the run saved there, if it is still there, `left_out`: whether a rollback
    left its batch out, `fault`: what is bad, `bad`: the leaves that were not finite before the step
    or in its batch, `operations`: the first that made an infinity, and the first that made a NaN}.

    `Refused` if there is no such run or step. The steps up to it are the run's; then, where it is
    bad, it is made once more, an operation at a time.
    """
    assert_same_on_all({"workdir": str(workdir), "step": step, **dict(flat(to_json(experiment)))})
    run = on_process_zero(lambda: read_run(workdir))
    if run is None:
        raise Refused(f"{workdir} holds no run: name its folder with --workdir.")
    if not 1 <= step <= experiment.steps:
        raise Refused(f"--step {step}: the run has steps 1 to {experiment.steps}.")
    described = to_json(experiment)
    fixed = {
        **identity(described, prepare(experiment)),
        "steps": experiment.steps,
    }  # which the schedule follows
    if lines := differences(run, fixed) + other_draws(run):
        raise Refused(
            f"{workdir} holds another run ({'; '.join(lines)}): "
            f"give the options it was trained with."
        )
    program = make_program(experiment)
    checkpoints = open_checkpoints(experiment, workdir)
    operations: list[dict[str, str]] = []
    with program.activate():
        earlier = [each for each in checkpoints.choose("last") if each < step]
        restored = checkpoints.restore(program.abstract, as_saved, steps=earlier)
        start = restored.step if restored else 0
        without = on_process_zero(lambda: left_out(workdir))
        state: Any = (
            as_asked(restored.state, program.abstract)
            if restored
            else initialize(program, workdir, run)[0]
        )
        train_step, _ = compile_step(program)

        def made(state: Any, rows: Rows, number: int) -> tuple[Any, dict[str, jax.Array]]:
            if number in without:
                return state.replace(step=state.step + 1), {}
            return train_step(state, device_put_batch(rows, program.mesh))

        if not give_reference(program, workdir, fixed | {REFERENCE: run.get(REFERENCE)}):
            raise lost_reference(workdir)
        source = experiment.data.source("train")
        rows_ahead = host_batches(program, source, start=start, stop=step)
        with contextlib.closing(rows_ahead) as batches:
            for number in range(start + 1, step):
                state, _ = made(state, next(batches), number)
                jax.block_until_ready(state)  # many at once may wait for each other's threads
            rows = next(batches)
        before = jax.tree.map(jnp.copy, state)  # the step donates its state
        batch = device_put_batch(rows, program.mesh)
        state, metrics = made(state, rows, step)
        if fault := int(metrics.pop(FAULT, 0)):
            # what stands inside `shard_map` cannot be made an operation at a time
            plain = make_program(dataclasses.replace(experiment, reproducible=0))
            if isinstance(train_step, StepWithTeacher):
                batch[TEACHER] = train_step.teacher
            operations = first_bad(
                plain.train_step.trace(before, batch).jaxpr, jax.tree.leaves((before, batch))
            )
        bad = bad_inputs({"batch": batch, "state": before})
    return {
        "step": step,
        "from": start,
        "metrics": {name: float(value) for name, value in jax.device_get(metrics).items()},
        "state_sha256": digests(state)[1],
        "saved_sha256": on_process_zero(lambda: saved_digest(checkpoints, step)),
        "left_out": step in without,
        "fault": describe_fault(program, fault),
        "bad": bad,
        "operations": operations,
    }


def describe_fault(program: Program, fault: int) -> str:
    """What was bad in a step, in words; "" for a good one."""
    if not fault:
        return ""
    return BadStepHandler(program.experiment.guard, program.abstract.params).describe(fault)


def saved_digest(checkpoints: CheckpointManager, step: int) -> str | None:
    """The digest of the state that a run saved at a step, or None if that is not there or is
    broken."""
    try:
        return checkpoints.manifest(step)["state_sha256"]
    except CorruptCheckpointError:
        return None
