"""How a run begins: anew, from its last good checkpoint, or forked from the weights of another."""

import functools
import logging
import re
from pathlib import Path
from typing import Any

import jax

from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.checkpoint.manager import Checkpoints, Restored, Tell, shape_and_dtype
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import diff, fingerprint, identity
from jaxbig.config.serialize import to_json
from jaxbig.distributed.multihost import assert_same_on_all, is_process_zero, on_process_zero
from jaxbig.distributed.watchdog import COMPILES, PREPARES, Heartbeat
from jaxbig.errors import Refused
from jaxbig.program.bad_steps import as_asked, as_saved
from jaxbig.program.mixed_precision import MASTERS, begun_with
from jaxbig.program.program import Program
from jaxbig.program.state import TrainState
from jaxbig.system.environment import RANDOM, config
from jaxbig.system.json_files import write_atomically, write_json
from jaxbig.train.bad_step_policy import LEFT_OUT
from jaxbig.train.run_directory import ADOPT, describe, read_run

log = logging.getLogger("jaxbig")
PARAMETERS, STATISTICS = "params/", "variables/batch_stats/"
"""Where what a run may take from another one stands in a state."""


def begin(
    program: Program,
    checkpoints: Checkpoints,
    workdir: Path,
    fork: bool,
    adopt: bool = False,
    at: Heartbeat = lambda step, doing: None,
) -> tuple[int, TrainState, str]:
    """(step, state, its digest or "") of the run in a folder; prepares the data, and last writes `run.json`.

    `Refused` if the folder holds another run, unless forking: then that run is moved aside, and its weights taken.
    adopt: checkpoints whose `run.json` is lost are taken for this run's; their shapes are compared all the same.
    """
    at(0, "reads run.json")
    experiment, run, weights = (
        program.experiment,
        on_process_zero(lambda: read_run(workdir, adopt)),
        None,
    )
    at(0, PREPARES)
    fixed = identity(to_json(experiment), prepare(experiment))
    at(0, "looks for checkpoints")
    lines = differences(run, fixed) + other_draws(run) if run is not None else []
    if lines and not fork and not on_process_zero(checkpoints.steps):
        log.info(
            "the run in %s had saved nothing: it begins anew, with %s", workdir, "; ".join(lines)
        )
        on_process_zero(
            lambda: [
                (workdir / name).unlink(missing_ok=True) for name in (LEFT_OUT, "summary.json")
            ]
        )
        run = None
    elif lines:
        if not fork:
            raise Refused(
                f"{workdir} holds another run ({'; '.join(lines)}): give another --workdir, or --fork to begin anew "
                f"there from its weights (it is kept in {workdir}/forked_from_N)."
            )
        weights = checkpoints.restore_some(functools.partial(fitting, program, ".*"))
        if weights is None:
            raise Refused(
                f"--fork: {workdir} has no checkpoint to take weights from: give another --workdir."
            )
        on_process_zero(lambda: move_aside(workdir))
        run = None
    elif run is None and parent_folder(workdir):
        on_process_zero(lambda: move_aside(workdir))  # what a kill in the midst of a fork has left
    if run is None and not adopt and on_process_zero(checkpoints.steps):
        raise Refused(
            f"{workdir} has checkpoints and no run.json to tell whose they are: give another --workdir; {ADOPT}."
        )
    checkpoints.clean()
    restored = checkpoints.restore(program.abstract, as_saved)
    if restored is not None and restored.step > experiment.steps:
        raise Refused(
            f"{workdir} is at step {restored.step} and --steps is {experiment.steps}: ask for more."
        )
    if restored is not None:
        on_process_zero(lambda: write_run(program, workdir, run, fixed))
        checkpoints.set_aside(restored.step)
        log.info("going on from step %s (%s)", restored.step, checkpoints.path(restored.step))
        return restored.step, as_asked(restored.state, program.abstract), restored.state_sha256
    state, weights = fresh(program, workdir, run, weights, at)
    at(0, "writes run.json")
    on_process_zero(
        lambda: write_run(program, workdir, run, fixed, weights)
    )  # last: what was refused has left nothing behind
    return 0, state, ""


def fresh(
    program: Program,
    workdir: Path,
    run: dict[str, Any] | None,
    weights: Restored | None = None,
    at: Heartbeat = lambda step, doing: None,
) -> tuple[TrainState, Restored | None]:
    """The state before the first step, and the weights that it was given, if any: by a fork, or by another run."""
    source, parent = program.experiment.initialize_from, parent_folder(workdir)
    tell = functools.partial(at, 0)
    if parent and weights is None:
        weights = Checkpoints(parent / "checkpoints", tell=tell).restore_some(
            functools.partial(fitting, program, ".*")
        )
    elif weights is None and source.run:
        weights = best_weights(program, tell)
    refuse_other_weights(run, weights, source.run)
    at(0, COMPILES)
    state = program.init()
    return with_weights(state, weights.state) if weights else state, weights


def prepare(experiment: Experiment) -> str:
    """Makes the data ready, by one process and then, where they have other disks, by the others; its identity.
    `Refused` where the experiment does not fit it."""
    found = on_process_zero(experiment.data.prepare)
    if not is_process_zero():
        found = experiment.data.prepare()
    assert_same_on_all({"data": found})
    on_process_zero(experiment.data.check)
    return found


def refuse_other_weights(run: dict[str, Any] | None, weights: Restored | None, source: str) -> None:
    """`Refused` if a run that ended before its first save began with other weights than it would now."""
    before = (run or {}).get("weights")
    if before and weights and before["state_sha256"] != weights.state_sha256:
        raise Refused(
            f"--initialize-from.run {source}: this run began with its weights of step {before['step']}, and has saved "
            f"nothing yet; now the best there are others, of step {weights.step}: begin in another --workdir."
        )


def best_weights(program: Program, tell: Tell) -> Restored:
    """What the program's experiment asks for of the best checkpoint of another run; `Refused` if there is none."""
    source = program.experiment.initialize_from
    run, choose = Path(source.run), functools.partial(fitting, program, source.pattern)
    weights = Checkpoints(run / "checkpoints", tell=tell).restore_some(choose, best=True)
    if weights is None:
        raise Refused(
            f"--initialize-from.run {run}: there is no checkpoint in {run}/checkpoints; train that run first, or name "
            f"another folder."
        )
    return weights


def write_run(
    program: Program,
    workdir: Path,
    run: dict[str, Any] | None,
    fixed: dict[str, Any],
    weights: Restored | None = None,
) -> None:
    """Writes `run.json`; says what has changed since the run was last started, where it was.

    weights: those of another run that this one begins with; noted as `weights`, their step and digest.
    """
    now = describe(
        to_json(program.experiment), fingerprint(fixed), fixed["data_identity"], program.mesh
    )
    if run is not None:
        sections = [
            name
            for name in ("experiment", "versions", "flags", "config", "devices", "mesh")
            if name in run
        ]
        changes = [line for name in sections for line in diff(run[name], now[name], name)]
        if changes:
            log.info(
                "going on with changes (a schedule follows the new steps): %s", "; ".join(changes)
            )
    began = (
        {"step": weights.step, "state_sha256": weights.state_sha256}
        if weights
        else (run or {}).get("weights")
    )
    starts = [*(run or {}).get("starts", []), now["started"]]
    for name, content in program.experiment.data.kept().items():
        write_atomically(workdir / name, content)
    write_json(workdir / "run.json", {**now, "weights": began, "starts": starts})


def differences(run: dict[str, Any], fixed: dict[str, Any]) -> list[str]:
    """What differs between the run that `run.json` tells of and this one's identity, a line each."""
    before = {**run["experiment"], **identity(run["experiment"], run["data_identity"])}
    return diff({name: before.get(name) for name in fixed}, fixed)


def other_draws(run: dict[str, Any]) -> list[str]:
    """What JAX is configured to draw otherwise from a seed than when the run was last started, a line each."""
    before, now = run.get("config", {}), config()
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
    return max(folders, key=lambda folder: int(folder.name.split("_")[-1]), default=None)


def parent_folder(workdir: Path) -> Path | None:
    """`forked_from` as process 0 sees it: a file server may show another host an older listing."""
    name = on_process_zero(lambda: folder.name if (folder := forked_from(workdir)) else "")
    return workdir / name if name else None


def move_aside(workdir: Path) -> None:
    """Moves the run in a folder into `forked_from_N` there; goes on where a kill interrupted it.

    `run.json` goes first: once it is gone, what is left in the folder belongs to the newest `forked_from_N`.
    """
    target = forked_from(workdir)
    if (workdir / "run.json").exists() or target is None:
        target = (
            workdir / f"forked_from_{1 if target is None else int(target.name.split('_')[-1]) + 1}"
        )
        target.mkdir()
    for name in (
        "run.json",
        "checkpoints",
        "broken",
        LEFT_OUT,
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
    ):
        if (workdir / name).exists():
            (workdir / name).rename(target / name)


def fitting(program: Program, pattern: str, shapes: dict[str, str]) -> dict[str, Any]:
    """Of another run's leaves, those that the program's parameters and batch statistics begin with: where the path
    matches the pattern and the shape is the same. Each has the program's sharding, and its dtype there; parameters
    that have float32 masters there are these.

    Logs a table: loaded (and cast, where the dtypes differ); skipped (the pattern leaves it out); missing (not there);
    reshaped (another shape). `Refused` if none is loaded, or a frozen one is not.
    """
    table: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for path, leaf in flatten_with_paths(program.abstract).items():
        field = next((each for each in (PARAMETERS, STATISTICS) if path.startswith(each)), None)
        if field is None:
            continue
        name, here = path.removeprefix(field), f"{leaf.dtype}{list(leaf.shape)}"
        there = next(
            (each for each in (MASTERS + name, path) if each in shapes and field == PARAMETERS),
            path,
        )
        shape, dtype = shape_and_dtype(shapes.get(there, here))
        if not re.search(pattern, name):
            table[name] = "skipped"
        elif there not in shapes:
            table[name] = "missing"
        elif shape != leaf.shape:
            table[name] = f"reshaped: {shapes[there]} there, {here} here"
        else:
            table[name] = (
                "loaded" if dtype == leaf.dtype else f"loaded, {dtype} there, {leaf.dtype} here"
            )
            wanted[there] = jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)
    width = max(map(len, table))
    lines = "".join(f"\n  {name:{width}}  {what}" for name, what in sorted(table.items()))
    log.info(
        "%s of %s leaves are the other run's, the rest is fresh:%s", len(wanted), len(table), lines
    )
    if not wanted:
        raise Refused(
            "no leaf there has the path and shape of one here: see the table, and name another run."
        )
    refuse_frozen(
        program, {name: what for name, what in table.items() if not what.startswith("loaded")}
    )
    return wanted


def refuse_frozen(program: Program, fresh: dict[str, str]) -> None:
    """`Refused` where parameters that begin at random beside another run's weights would stay so. fresh: why they do,
    by path."""
    frozen = program.experiment.optimizer.frozen
    names = flatten_with_paths(program.abstract.params)
    stuck = [
        name for name in fresh if name in names and frozen is not None and re.search(frozen, name)
    ]
    if stuck:
        raise Refused(
            f"--optimizer.frozen {frozen!r} freezes {len(stuck)} parameters that the other run does not give, so they "
            f"would stay random, first {stuck[0]} ({fresh[stuck[0]]}): give them the names and shapes that they have "
            f"there, or freeze those alone that are loaded."
        )


def with_weights(state: TrainState, weights: dict[str, jax.Array]) -> TrainState:
    """A state of the first step with other weights, by their path in a state, where it is given them."""
    given = {re.sub(f"^{MASTERS}", PARAMETERS, path): leaf for path, leaf in weights.items()}

    def take(path: Any, fresh: jax.Array) -> jax.Array:
        found = given.get(path_name(path))
        return fresh if found is None else found.astype(fresh.dtype)

    params = {
        path.removeprefix(PARAMETERS): leaf
        for path, leaf in given.items()
        if path.startswith(PARAMETERS)
    }
    begun = state.replace(opt_state=begun_with(state.opt_state, params))  # type: ignore[attr-defined]
    return jax.tree_util.tree_map_with_path(take, begun)
