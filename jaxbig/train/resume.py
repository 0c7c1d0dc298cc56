"""Starts a run: from its last good checkpoint, or from the weights of another run, or fresh."""

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.adapt import lora
from jaxbig.adapt.other_run import (
    AVERAGES,
    FROZEN_PARAMETERS,
    PARAMETERS,
    STATISTICS,
    adapters_of,
    is_adapter,
    place_of,
    plain_leaves,
)
from jaxbig.adapt.weights import FROZEN
from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.checkpoint.digest import digests
from jaxbig.checkpoint.manager import CheckpointManager, ReportActivity, Restored, shape_and_dtype
from jaxbig.config.experiment import Experiment
from jaxbig.config.experiment_files import command_for
from jaxbig.config.fingerprint import ADDED_LATER, FREE, diff, fingerprint, identity, without_added
from jaxbig.config.serialize import to_json
from jaxbig.distributed.multihost import assert_same_on_all, is_process_zero, on_process_zero
from jaxbig.distributed.sharding import replicated
from jaxbig.distributed.watchdog import COMPILES, PREPARES, Heartbeat
from jaxbig.errors import Refused
from jaxbig.pretrained.load import open_pretrained
from jaxbig.pretrained.side_files import FOLDER, copy_side_files
from jaxbig.program.bad_steps import as_asked, as_saved
from jaxbig.program.mixed_precision import reset_master_weights
from jaxbig.program.program import Program
from jaxbig.program.state import TrainState
from jaxbig.program.teacher import TEACHER
from jaxbig.system.disk import write_atomically
from jaxbig.system.environment import RANDOM, config
from jaxbig.train.bad_step_policy import LEFT_OUT
from jaxbig.train.pretrained_state import (
    missing_weights,
    pretrained_state,
    refuse_misfit,
    weights_of,
)
from jaxbig.train.reference import (
    REFERENCE,
    check_reference,
    give_reference,
    lost_reference,
    reference_identity,
)
from jaxbig.train.rewind import is_rewound, keep_aside
from jaxbig.train.run_description import ADOPT, describe, read_run, write_run_file
from jaxbig.train.teacher import teacher_identity

log = logging.getLogger("jaxbig")
TAKEN = (PARAMETERS, STATISTICS, FROZEN_PARAMETERS)
"""The prefixes of the leaves of a state that a run may take from another run."""


def initialize_or_resume(
    program: Program,
    checkpoints: CheckpointManager,
    workdir: Path,
    *,
    fork: bool = False,
    adopt: bool = False,
    resume_from: str = "",
    heartbeat: Heartbeat = lambda step, activity: None,
    prepared: Callable[[], None] = lambda: None,
) -> tuple[int, TrainState, str]:
    """Prepares the data, restores or makes the state, and writes `run.json`.

    The order is important. The state is, in this order of precedence:
      1. that of this run's newest good checkpoint, if it has one;
      2. for a fork that has saved nothing yet: a first state with the weights of the run that was
         moved aside;
      3. for `initialize_from`: a first state with the weights of another run's best checkpoint, or
         of a folder as Hugging Face has them;
      4. a first state with random weights.

    Args:
      program: shapes and shardings of the state.
      checkpoints: those in the run directory.
      workdir: the run directory.
      fork: if it holds another run, move that aside and start from its weights.
      adopt: take checkpoints whose `run.json` is lost for this run's; shapes are still compared.
      resume_from: the checkpoint to go back to, as `CheckpointManager.choose` takes it; what came
        after it is kept aside (rewind.py). Empty: the newest good one.
      heartbeat: called with (step, activity).
      prepared: called once the data is prepared, to check what else the run needs.

    Returns:
      The step, the state, and its `state_sha256`, "" for a first state.

    Raises:
      Refused: the directory holds another run and `fork` is false, or it cannot be resumed.
    """
    experiment = program.experiment
    heartbeat(0, "reads run.json")
    run = on_process_zero(lambda: read_run(workdir, adopt))
    heartbeat(0, PREPARES)
    described = to_json(experiment)
    fixed = identity(described, prepare(experiment)) | teacher_identity(experiment)
    fixed |= reference_identity(experiment)
    check_reference(program)
    prepared()
    heartbeat(0, "looks for checkpoints")
    run, weights = claim_directory(
        program, checkpoints, workdir, run=run, fixed=fixed, fork=fork, adopt=adopt
    )
    checkpoints.clean()
    if resume_from and on_process_zero(lambda: is_rewound(run, described, workdir, resume_from)):
        log.info("this run has gone back to step %s before: it resumes", resume_from)
        resume_from = ""
    steps = checkpoints.choose(resume_from or "last", "--resume-from")
    if resume_from and not steps:
        raise Refused(f"--resume-from {resume_from}: {workdir} has no checkpoint.")
    known = give_reference(program, workdir, fixed, heartbeat=heartbeat)
    restored = checkpoints.restore(program.abstract, as_saved, steps=steps)
    if restored is not None:
        if not known:
            if restored.step:
                raise lost_reference(workdir)
            give_reference(
                program, None, fixed, start=restored.state, heartbeat=heartbeat
            )  # an imported run
        check_length(experiment, workdir, restored.step)
        if resume_from:
            on_process_zero(lambda: keep_aside(workdir, checkpoints, restored.step))
        on_process_zero(
            lambda: write_run(program, workdir, run=run, fixed=fixed, rewound_to=resume_from)
        )
        checkpoints.set_aside(restored.step)
        log.info("resuming from step %s (%s)", restored.step, checkpoints.path(restored.step))
        return restored.step, as_asked(restored.state, program.abstract), restored.state_sha256
    state, weights = initialize(program, workdir, run, weights=weights, heartbeat=heartbeat)
    if not known:
        give_reference(program, None, fixed, start=state, heartbeat=heartbeat)
    heartbeat(0, "writes run.json")
    # last: a run that was refused has left nothing behind
    on_process_zero(lambda: write_run(program, workdir, run=run, fixed=fixed, weights=weights))
    return 0, state, ""


def claim_directory(
    program: Program,
    checkpoints: CheckpointManager,
    workdir: Path,
    *,
    run: dict[str, Any] | None,
    fixed: dict[str, Any],
    fork: bool,
    adopt: bool,
) -> tuple[dict[str, Any] | None, Restored | None]:
    """Ensures that all that is in a run directory is this run's; moves another run aside to fork.

    Args:
      program: of this run.
      checkpoints: those in the directory.
      workdir: the directory.
      run: the content of its `run.json`, None if there is none.
      fixed: this run's identity.
      fork: see `initialize_or_resume`.
      adopt: see `initialize_or_resume`.

    Returns:
      `run`, None if that was another run; and of a run that was moved aside the weights.

    Raises:
      Refused: the directory holds another run and `fork` is false.
    """
    weights = None
    lines = differences(run, fixed) + other_draws(run) if run is not None else []
    if lines and not fork and not on_process_zero(checkpoints.steps):
        log.info(
            "the run in %s had saved nothing: it starts again, with %s", workdir, "; ".join(lines)
        )
        on_process_zero(lambda: remove_notes(workdir))
        run = None
    elif lines and not fork:
        raise another_run(workdir, lines)
    elif lines:
        weights = other_weights(program, checkpoints, run)
        if weights is None:
            raise Refused(
                f"--fork: {workdir} has no checkpoint to take weights from: give another --workdir."
            )
        on_process_zero(lambda: move_aside(workdir))
        run = None
    elif run is None and parent_folder(workdir):
        on_process_zero(lambda: move_aside(workdir))  # completes a fork that was killed
    if run is None and not adopt and on_process_zero(checkpoints.steps):
        raise unknown_run(workdir)
    return run, weights


def check_length(experiment: Experiment, workdir: Path, step: int) -> None:
    """Raises `Refused` for a run that has made more steps than it is asked for."""
    if step > experiment.steps:
        raise Refused(
            f"{workdir} is at step {step} and --steps is {experiment.steps}: ask for more."
        )


def another_run(workdir: Path, lines: Sequence[str]) -> Refused:
    """The error for a directory that holds another run, with what differs."""
    return Refused(
        f"{workdir} holds another run ({'; '.join(lines)}): give another --workdir, or --fork "
        f"to start again there from its weights (it is kept in {workdir}/forked_from_N)."
    )


def unknown_run(workdir: Path) -> Refused:
    """The error for a directory with checkpoints of a run that is not described."""
    return Refused(
        f"{workdir} has checkpoints and no run.json to tell whose they are: give another "
        f"--workdir; {ADOPT}."
    )


def remove_notes(workdir: Path) -> None:
    """Removes what a run that saved nothing has noted in its directory."""
    for name in (LEFT_OUT, "summary.json"):
        (workdir / name).unlink(missing_ok=True)


def initialize(
    program: Program,
    workdir: Path,
    run: dict[str, Any] | None,
    *,
    weights: Restored | None = None,
    heartbeat: Heartbeat = lambda step, activity: None,
) -> tuple[TrainState, Restored | None]:
    """The state before the first step: cases 2 to 4 of `initialize_or_resume`.

    Args:
      program: of the run.
      workdir: its directory.
      run: the content of its `run.json`, None if there is none.
      weights: of a run that was moved aside just now, by a fork.
      heartbeat: called with (step, activity).

    Returns:
      The state, and the weights of another run in it, if any.
    """
    report = functools.partial(heartbeat, 0)
    source = program.experiment.initialize_from
    parent = parent_folder(workdir)
    if parent and weights is None:
        described = on_process_zero(lambda: read_run(parent))
        checkpoints = CheckpointManager(parent / "checkpoints", report_activity=report)
        weights = other_weights(program, checkpoints, described)
    elif weights is None and source.run:
        weights = best_weights(program, report)
    elif weights is None and source.huggingface:
        return initialize_from_folder(program, workdir, run)
    refuse_other_weights(run, weights, f"--initialize-from.run {source.run}")
    heartbeat(0, COMPILES)
    state = program.init()
    return with_weights(program, state, weights.state) if weights else state, weights


def initialize_from_folder(
    program: Program, workdir: Path, run: dict[str, Any] | None
) -> tuple[TrainState, Restored]:
    """The state before the first step with weights of a folder as Hugging Face has them.

    Args:
      program: of the run.
      workdir: its directory, which keeps the folder's tokenizer.
      run: the content of its `run.json`, None if there is none.

    Returns:
      As of `initialize`.
    """
    source = program.experiment.initialize_from
    pretrained = open_pretrained(source.huggingface)
    refuse_misfit(pretrained, program.experiment, heads=False)
    state, fresh = pretrained_state(program, pretrained, pattern=source.pattern)
    refuse_frozen(program, dict.fromkeys(fresh, "missing"))
    weights = Restored(0, {}, digests(weights_of(state))[1])
    refuse_other_weights(run, weights, f"--initialize-from.huggingface {source.huggingface}")
    on_process_zero(lambda: copy_side_files(pretrained.folder, workdir / FOLDER))
    return state, weights


def check_first_state(program: Program, workdir: Path, run: dict[str, Any] | None) -> str:
    """Raises `Refused` as `initialize` would for the weights of another run or of a folder.

    Args:
      program: of the run.
      workdir: its directory.
      run: the content of its `run.json`, None if there is none.

    Returns:
      Whose weights the first state has; empty: they are random. None is read.
    """
    source = program.experiment.initialize_from
    parent = parent_folder(workdir) if on_process_zero(workdir.is_dir) else None
    if parent:
        return str(parent)
    if source.run:
        weights = best_weights(program, lambda activity: None, read=False)
        refuse_other_weights(run, weights, f"--initialize-from.run {source.run}")
    elif source.huggingface:
        pretrained = open_pretrained(source.huggingface)
        refuse_misfit(pretrained, program.experiment, heads=False)
        fresh = missing_weights(program, pretrained, pattern=source.pattern)
        refuse_frozen(program, dict.fromkeys(fresh, "missing"))
    return source.run or source.huggingface


def prepare(experiment: Experiment) -> str:
    """Prepares the data, on process 0 first, then, where they have other disks, on the others.

    Returns:
      The identity of the data.

    Raises:
      Refused: the experiment does not fit the data.
    """
    found = on_process_zero(experiment.data.prepare)
    if not is_process_zero():
        found = experiment.data.prepare()
    assert_same_on_all({"data": found})
    on_process_zero(experiment.data.check)
    return found


def refuse_other_weights(run: dict[str, Any] | None, weights: Restored | None, source: str) -> None:
    """Raises if a run that ended before its first save started with other weights than now."""
    before = (run or {}).get("weights")
    if before and weights and before["state_sha256"] != weights.state_sha256:
        steps = f" (those of step {before['step']} then, of step {weights.step} now)"
        raise Refused(
            f"{source}: its weights have changed since this run began"
            f"{steps if weights.step else ''}, and the run has saved nothing yet: give another "
            f"--workdir."
        )


def best_weights(program: Program, report: ReportActivity, *, read: bool = True) -> Restored:
    """The weights of the best checkpoint of the run that `initialize_from` names.

    Args:
      program: of this run.
      report: called with what is done.
      read: whether they are wanted; else the state is empty.
    """
    source = program.experiment.initialize_from
    folder = Path(source.run) / "checkpoints"
    described = None
    with contextlib.suppress(Refused):  # for messages, and for adapters, which ask for it
        described = read_run(Path(source.run))
    checkpoints = CheckpointManager(folder, report_activity=report)
    weights = other_weights(
        program, checkpoints, described, pattern=source.pattern, best=True, read=read
    )
    if weights is None:
        raise Refused(
            f"--initialize-from.run {Path(source.run)}: there is no checkpoint in {folder}; train "
            f"that run first{command_for(Path(source.run))}, or name another folder."
        )
    return weights


def other_weights(
    program: Program,
    checkpoints: CheckpointManager,
    described: dict[str, Any] | None,
    *,
    pattern: str = ".*",
    best: bool = False,
    read: bool = True,
) -> Restored | None:
    """The weights of another run that this one takes, as its evaluation uses them.

    Args:
      program: of this run.
      checkpoints: of the other run.
      described: the other run's `run.json`, if it can be read.
      pattern: a regular expression for the paths of the parameters to take.
      best: take the best checkpoint, not the newest.
      read: whether the leaves are wanted; else only that they are there is checked.

    Returns:
      As state, leaves by the path that they have here; None if there is no checkpoint.
    """
    experiment = described["experiment"] if described else {}
    model = experiment["model"]["type"] if described and best else ""

    def choose(shapes: dict[str, str]) -> dict[str, Any]:
        leaves = matching_leaves(program, pattern, shapes, model=model)
        return leaves if read else {}

    weights = checkpoints.restore_some(choose, best=best)
    if weights is None:
        return None
    found = plain_leaves(weights.state, lora.scale_of(experiment))
    return dataclasses.replace(weights, state=found)


def write_run(
    program: Program,
    workdir: Path,
    *,
    run: dict[str, Any] | None,
    fixed: dict[str, Any],
    weights: Restored | None = None,
    rewound_to: str = "",
) -> None:
    """Writes `run.json`; logs what has changed since the run was last started.

    Args:
      program: of the run.
      workdir: its directory.
      run: what `run.json` held, None at the first start.
      fixed: the run's identity.
      weights: those of another run in the first state; their step and digest are noted.
      rewound_to: what the run has gone back to just now, if it has.
    """
    now = describe(
        program.experiment,
        fingerprint=fingerprint(fixed),
        data_identity=fixed["data_identity"],
        mesh=program.mesh,
    )
    if run is not None:
        sections = ("experiment", "versions", "flags", "config", "devices", "mesh")
        changes = [
            line
            for name in sections
            if name in run
            for line in diff(without_added(run[name]), without_added(now[name]), name)
        ]
        if changes:
            log.info(
                "resuming with changes (a schedule follows the new steps): %s", "; ".join(changes)
            )
        if code := diff(run.get("code", now["code"]), now["code"], "code"):
            log.warning(
                "resuming with other code, which may compute other numbers: %s", "; ".join(code)
            )
    noted = (run or {}).get("weights")
    if weights:
        noted = {"step": weights.step, "state_sha256": weights.state_sha256}
    starts = [*(run or {}).get("starts", []), now["started"]]
    for name, content in program.experiment.data.kept().items():
        write_atomically(workdir / name, content)
    now |= {"weights": noted, "starts": starts}
    now |= {name: fixed[name] for name in (TEACHER, REFERENCE) if name in fixed}
    if rewound_to := rewound_to or (run or {}).get("rewound_to", ""):
        now["rewound_to"] = rewound_to
    write_run_file(workdir, now)


def differences(run: dict[str, Any], fixed: dict[str, Any]) -> list[str]:
    """What differs between the run in `run.json` and this one's identity, one line each."""
    experiment = run["experiment"]
    before = {**ADDED_LATER, **experiment, **identity(experiment, run["data_identity"])}
    before |= {name: run.get(name) for name in (TEACHER, REFERENCE)}
    now = dict(fixed)
    if "model" in fixed:  # what `identity` has left out may differ too
        for name in set(experiment) & set(ADDED_LATER) - {*FREE, *fixed}:
            now[name] = ADDED_LATER[name]
    return diff(
        {name: without_added(before.get(name)) for name in now},
        {name: without_added(value) for name, value in now.items()},
    )


def of_shapes(experiment: Experiment) -> dict[str, Any]:
    """The fields that determine the shapes of a run's state, as `differences` takes them."""
    plain = to_json(experiment)
    return {name: plain[name] for name in ("model", "objective", "optimizer", "lora", "ema")}


def other_draws(run: dict[str, Any]) -> list[str]:
    """Settings of JAX that change its random numbers and have changed, one line each."""
    before = run.get("config", {})
    now = config()
    return [
        line
        for name in RANDOM
        if name in before and name in now
        for line in diff(before[name], now[name], name)
    ]


def forked_from(workdir: Path) -> Path | None:
    """The folder of the run that this one was forked from last, if it was."""
    folders = [
        folder for folder in workdir.iterdir() if re.fullmatch(r"forked_from_\d+", folder.name)
    ]
    return max(folders, key=fork_number, default=None)


def fork_number(folder: Path) -> int:
    """The N of `forked_from_N`."""
    return int(folder.name.split("_")[-1])


def parent_folder(workdir: Path) -> Path | None:
    """`forked_from` as process 0 sees it: a file server may show another host an older listing."""

    def look() -> str:
        folder = forked_from(workdir)
        return folder.name if folder else ""

    name = on_process_zero(look)
    return workdir / name if name else None


def move_aside(workdir: Path) -> None:
    """Moves the run in a directory to `forked_from_N` there; completes a move that was killed.

    `run.json` goes first: once it is gone, what is left in the directory belongs to the newest
    `forked_from_N`.
    """
    target = forked_from(workdir)
    if (workdir / "run.json").exists() or target is None:
        number = 1 if target is None else fork_number(target) + 1
        target = workdir / f"forked_from_{number}"
        target.mkdir()
    for name in (
        "run.json",
        "checkpoints",
        "broken",
        LEFT_OUT,
        "metrics.jsonl",
        "evaluations.jsonl",
        "summary.json",
        "tensorboard",
        "profile",
        "dump",
    ):
        if (workdir / name).exists():
            (workdir / name).rename(target / name)


def matching_leaves(
    program: Program, pattern: str, shapes: dict[str, str], *, model: str = ""
) -> dict[str, Any]:
    """Which leaves of another run's state the program's parameters and batch statistics take.

    A leaf is taken if its path matches the pattern and its shape is the same; of parameters with
    float32 master weights there, the masters are taken. Logs a table of all leaves: loaded (and
    cast, where dtypes differ); skipped (the pattern excludes it); missing (not there); reshaped
    (another shape).

    Args:
      program: of this run.
      pattern: regular expression, searched for in the paths.
      shapes: of the other run's leaves, as `float32[16, 4]`, by path.
      model: the name of the other run's model, "" where it is not known.

    Returns:
      Shape and dtype there with the sharding here, by path there.

    Raises:
      Refused: no leaf is taken, or a frozen parameter is not.
    """
    table: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for path, leaf in flatten_with_paths(program.abstract).items():
        field = next((each for each in TAKEN if path.startswith(each)), None)
        if field is None:
            continue
        name = path.removeprefix(field)
        here = f"{leaf.dtype}{list(leaf.shape)}"
        there = path
        if field != STATISTICS:
            there = place_of(name, shapes) or path
        shape, dtype = shape_and_dtype(shapes.get(there, here))
        if not re.search(pattern, name):
            table[name] = "skipped"
        elif there not in shapes or is_adapter(name):  # another run's adapters are merged
            table[name] = "missing"
        elif shape != leaf.shape:
            table[name] = f"reshaped: {shapes[there]} there, {here} here"
        else:
            table[name] = "loaded"
            if dtype != leaf.dtype:
                table[name] = f"loaded, {dtype} there, {leaf.dtype} here"
            wanted[there] = jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)
            if adapters := adapters_of(name, shapes):
                table[name] += ", with its adapter"
                whole = replicated(program.mesh)
                for each in adapters:
                    wanted[each] = jax.ShapeDtypeStruct(
                        *shape_and_dtype(shapes[each]), sharding=whole
                    )
    width = max(map(len, table))
    lines = "".join(f"\n  {name:{width}}  {what}" for name, what in sorted(table.items()))
    log.info(
        "%s of %s leaves are the other run's, the rest is fresh:%s", len(wanted), len(table), lines
    )
    if not wanted:
        here = type(program.experiment.model).__name__
        models = (
            f" (the models differ: {model} there, {here} here)" if model not in ("", here) else ""
        )
        raise Refused(
            f"no leaf there has the path and shape of one here{models}: see the table, and name "
            f"another run."
        )
    refuse_frozen(
        program, {name: what for name, what in table.items() if not what.startswith("loaded")}
    )
    return wanted


def refuse_frozen(program: Program, fresh: dict[str, str]) -> None:
    """Raises if parameters that the other run does not give are frozen, so stay random.

    Args:
      program: of this run.
      fresh: why each leaf is not loaded, by path.
    """
    below = flatten_with_paths(program.abstract.variables.get(FROZEN, {}))
    if random := [name for name in fresh if name in below]:
        raise Refused(
            f"--lora.rank {program.experiment.lora.rank} freezes {len(random)} parameters that the "
            f"other run does not give, so they would stay random, first {random[0]} "
            f"({fresh[random[0]]}): name a run that has them, or train them in full with "
            f"--lora.trained."
        )
    frozen = program.experiment.optimizer.frozen
    names = flatten_with_paths(program.abstract.params)
    stuck = [
        name for name in fresh if name in names and frozen is not None and re.search(frozen, name)
    ]
    if stuck:
        raise Refused(
            f"--optimizer.frozen {frozen!r} freezes {len(stuck)} parameters that the other run "
            f"does not give, so they would stay random, first {stuck[0]} ({fresh[stuck[0]]}): give "
            f"them the names and shapes that they have there, or freeze only those that are loaded."
        )


def with_weights(program: Program, state: TrainState, weights: dict[str, jax.Array]) -> TrainState:
    """A first state with other weights, by the path that they have in a plain model's state."""

    def take(path: Any, fresh: jax.Array) -> jax.Array:
        name = path_name(path)
        found = weights.get(re.sub(f"^({FROZEN_PARAMETERS}|{AVERAGES})", PARAMETERS, name))
        if found is None:
            return fresh
        # a step may use the memory of a parameter and of its average
        return jnp.array(found, fresh.dtype, copy=name.startswith(AVERAGES))

    params = {
        path.removeprefix(PARAMETERS): leaf
        for path, leaf in weights.items()
        if path.startswith(PARAMETERS)
    }
    opt_state = reset_master_weights(state.opt_state, params)
    opt_state = program.experiment.optimizer.begin_at(params, opt_state)
    state = state.replace(opt_state=opt_state)  # type: ignore[attr-defined]
    return jax.tree_util.tree_map_with_path(take, state)
