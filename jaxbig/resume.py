"""How a run begins: anew, from its last good checkpoint, or forked from the weights of another."""

import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint import Checkpoints, Restored
from jaxbig.environment import RANDOM, config
from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, diff, fingerprint, identity, to_json
from jaxbig.guard import LEFT_OUT, as_asked, as_saved
from jaxbig.precision import begun_with
from jaxbig.processes import agree, first, leading
from jaxbig.state import TrainState, path_name
from jaxbig.step import Program
from jaxbig.tracking.metrics import write_atomically, write_json
from jaxbig.workdir import ADOPT, describe, read_run

log = logging.getLogger("jaxbig")


def begin(
    program: Program, checkpoints: Checkpoints, workdir: Path, fork: bool, adopt: bool = False
) -> tuple[int, TrainState, str]:
    """(step, state, its digest or "") of the run in a folder; prepares the data, and last writes `run.json`.

    `Refused` if the folder holds another run, unless forking: then that run is moved aside, and its weights taken.
    adopt: checkpoints whose `run.json` is lost are taken for this run's; their shapes are compared all the same.
    """
    experiment, run, weights = program.experiment, first(lambda: read_run(workdir, adopt)), None
    fixed = identity(to_json(experiment), prepare(experiment))
    lines = differences(run, fixed) + other_draws(run) if run is not None else []
    if lines and not fork and not first(checkpoints.steps):
        log.info("the run in %s had saved nothing: it begins anew, with %s", workdir, "; ".join(lines))
        first(lambda: [(workdir / name).unlink(missing_ok=True) for name in (LEFT_OUT, "summary.json")])
        run = None
    elif lines:
        if not fork:
            raise Refused(
                f"{workdir} holds another run ({'; '.join(lines)}): give another --workdir, or --fork to begin anew "
                f"there from its weights (it is kept in {workdir}/forked_from_N)."
            )
        weights = checkpoints.restore_parameters()
        if weights is None:
            raise Refused(f"--fork: {workdir} has no checkpoint to take weights from: give another --workdir.")
        first(lambda: move_aside(workdir))
        run = None
    elif run is None and parent_folder(workdir):
        first(lambda: move_aside(workdir))  # what a kill in the midst of a fork has left
    if run is None and not adopt and first(checkpoints.steps):
        raise Refused(
            f"{workdir} has checkpoints and no run.json to tell whose they are: give another --workdir; {ADOPT}."
        )
    checkpoints.clean()
    restored = checkpoints.restore(program.abstract, as_saved)
    if restored is not None and restored.step > experiment.steps:
        raise Refused(f"{workdir} is at step {restored.step} and --steps is {experiment.steps}: ask for more.")
    if restored is not None:
        first(lambda: write_run(program, workdir, run, fixed))
        checkpoints.set_aside(restored.step)
        log.info("going on from step %s (%s)", restored.step, checkpoints.path(restored.step))
        return restored.step, as_asked(restored.state, program.abstract), restored.state_sha256
    state, weights = fresh(program, workdir, run, weights)
    first(lambda: write_run(program, workdir, run, fixed, weights))  # last: what was refused has left nothing behind
    return 0, state, ""


def fresh(
    program: Program, workdir: Path, run: dict[str, Any] | None, weights: Restored | None = None
) -> tuple[TrainState, Restored | None]:
    """The state before the first step, and the weights that it was given, if any: by a fork, or by another run."""
    source, parent = program.experiment.initialize_from, parent_folder(workdir)
    pattern = ".*"
    if parent and weights is None:
        weights = Checkpoints(parent / "checkpoints").restore_parameters()
    elif weights is None and source.run:
        weights, pattern = best_weights(Path(source.run)), source.pattern
    refuse_other_weights(run, weights, source.run)
    state: Any = program.init()
    if weights:
        trees = state.params, state.variables.get("batch_stats", {})
        params, statistics = take_weights(trees, weights.state, pattern)
        variables = {**state.variables, "batch_stats": statistics} if statistics else state.variables
        opt_state = begun_with(state.opt_state, params)
        state = state.replace(params=params, variables=variables, opt_state=opt_state)
    return state, weights


def prepare(experiment: Experiment) -> str:
    """Makes the data ready, by one process and then, where they have other disks, by the others; its identity.
    `Refused` where the experiment does not fit it."""
    found = first(experiment.data.prepare)
    if not leading():
        found = experiment.data.prepare()
    agree({"data": found})
    first(experiment.data.check)
    return found


def refuse_other_weights(run: dict[str, Any] | None, weights: Restored | None, source: str) -> None:
    """`Refused` if a run that ended before its first save began with other weights than it would now."""
    before = (run or {}).get("weights")
    if before and weights and before["state_sha256"] != weights.state_sha256:
        raise Refused(
            f"--initialize-from.run {source}: this run began with its weights of step {before['step']}, and has saved "
            f"nothing yet; now the best there are others, of step {weights.step}: begin in another --workdir."
        )


def best_weights(run: Path) -> Restored:
    """The parameters by path in the best checkpoint of a run; `Refused` if there is none."""
    weights = Checkpoints(run / "checkpoints").restore_parameters(best=True)
    if weights is None:
        raise Refused(
            f"--initialize-from.run {run}: there is no checkpoint in {run}/checkpoints; train that run first, or name "
            f"another folder."
        )
    return weights


def write_run(
    program: Program, workdir: Path, run: dict[str, Any] | None, fixed: dict[str, Any], weights: Restored | None = None
) -> None:
    """Writes `run.json`; says what has changed since the run was last started, where it was.

    weights: those of another run that this one begins with; noted as `weights`, their step and digest.
    """
    now = describe(to_json(program.experiment), fingerprint(fixed), fixed["data_identity"], program.mesh)
    if run is not None:
        sections = [name for name in ("experiment", "versions", "flags", "config", "devices", "mesh") if name in run]
        changes = [line for name in sections for line in diff(run[name], now[name], name)]
        if changes:
            log.info("going on with changes (a schedule follows the new steps): %s", "; ".join(changes))
    began = {"step": weights.step, "state_sha256": weights.state_sha256} if weights else (run or {}).get("weights")
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
    return [line for name in RANDOM if name in before and name in now for line in diff(before[name], now[name], name)]


def forked_from(workdir: Path) -> Path | None:
    """The folder of the run that this one was forked from last, if it was."""
    folders = [folder for folder in workdir.iterdir() if re.fullmatch(r"forked_from_\d+", folder.name)]
    return max(folders, key=lambda folder: int(folder.name.split("_")[-1]), default=None)


def parent_folder(workdir: Path) -> Path | None:
    """`forked_from` as process 0 sees it: a file server may show another host an older listing."""
    name = first(lambda: folder.name if (folder := forked_from(workdir)) else "")
    return workdir / name if name else None


def move_aside(workdir: Path) -> None:
    """Moves the run in a folder into `forked_from_N` there; goes on where a kill interrupted it.

    `run.json` goes first: once it is gone, what is left in the folder belongs to the newest `forked_from_N`.
    """
    target = forked_from(workdir)
    if (workdir / "run.json").exists() or target is None:
        target = workdir / f"forked_from_{1 if target is None else int(target.name.split('_')[-1]) + 1}"
        target.mkdir()
    for name in ("run.json", "checkpoints", "broken", LEFT_OUT, "metrics.jsonl", "summary.json", "tensorboard"):
        if (workdir / name).exists():
            (workdir / name).rename(target / name)


def take_weights(trees: tuple[Any, ...], weights: dict[str, Any], pattern: str = ".*") -> tuple[Any, ...]:
    """Parameters and batch statistics, those whose path matches taken from `weights` if the shape is the same.

    Logs a table: loaded (and cast, where the dtypes differ); skipped (the pattern leaves it out); missing (not in
    `weights`); reshaped (another shape).
    """
    table: dict[str, str] = {}

    def take(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path[1:])
        found = weights.get(name)
        if not re.search(pattern, name):
            table[name] = "skipped"
        elif found is None:
            table[name] = "missing"
        elif found.shape != leaf.shape:
            table[name] = f"reshaped: {found.dtype}{list(found.shape)} there, {leaf.dtype}{list(leaf.shape)} here"
        else:
            table[name] = "loaded" if found.dtype == leaf.dtype else f"loaded, {found.dtype} there, {leaf.dtype} here"
            array = np.asarray(found).astype(leaf.dtype)
            return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])
        return leaf

    taken = jax.tree_util.tree_map_with_path(take, trees)
    loaded, width = sum(what.startswith("loaded") for what in table.values()), max(map(len, table))
    lines = "".join(f"\n  {name:{width}}  {what}" for name, what in sorted(table.items()))
    log.info("%s of %s leaves are the other run's, the rest is fresh:%s", loaded, len(table), lines)
    if not loaded:
        raise Refused("no leaf there has the path and shape of one here: see the table, and name another run.")
    return taken
