"""How a run begins: anew, from its last good checkpoint, or forked from the weights of another."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint import Checkpoints
from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, diff, fingerprint, identity, to_json
from jaxbig.state import TrainState, leaves, path_name
from jaxbig.step import Program
from jaxbig.tracking.metrics import write_json
from jaxbig.tracking.screen import Screen
from jaxbig.workdir import describe, read_run

FORKED = "forked_from_"


def begin(
    experiment: Experiment, program: Program, checkpoints: Checkpoints, workdir: Path, screen: Screen, forking: bool
) -> tuple[int, TrainState, str]:
    """(step, state, its digest or "") of the run in a folder, whose `run.json` is written; prepares the data.

    `Refused` if the folder holds another run, unless forking: then that run is moved aside, and its weights taken.
    """
    claim(experiment, program, workdir, screen, forking)
    checkpoints.clean()
    restored = checkpoints.restore(program.abstract)
    if restored is not None:
        if restored.step > experiment.steps:
            raise Refused(f"{workdir} is at step {restored.step} and --steps is {experiment.steps}: ask for more.")
        checkpoints.set_aside(restored.step)
        screen.say(f"going on from step {restored.step} ({checkpoints.path(restored.step)})")
        return restored.step, restored.state, restored.state_sha256
    state, parent = program.init(), forked_from(workdir)
    weights = Checkpoints(parent / "checkpoints").restore_parameters() if parent else None
    if weights is not None:
        state = state.replace(params=take_weights(state.params, weights, screen))  # type: ignore[attr-defined]
    return 0, state, ""


def claim(experiment: Experiment, program: Program, workdir: Path, screen: Screen, forking: bool) -> None:
    """Makes the folder this run's: `Refused` if it holds another one, unless forking."""
    run, fixed = read_run(workdir), identity(to_json(experiment), experiment.data.prepare())
    if run is not None and (lines := differences(run, fixed)):
        if not forking:
            raise Refused(
                f"{workdir} holds another run ({'; '.join(lines)}): give another --workdir, or --fork to begin anew "
                f"there from its weights (it is kept in {workdir / FORKED}N)."
            )
        move_aside(workdir)
        run = None
    elif run is None and forked_from(workdir) is not None:
        move_aside(workdir)  # what a kill in the midst of a fork has left
    now = describe(to_json(experiment), fingerprint(fixed), fixed["data_identity"], program.mesh)
    if run is not None:
        sections = ("experiment", "versions", "devices", "mesh")
        changes = [line for name in sections for line in diff(run.get(name), now[name], name)]
        if changes:
            screen.say(f"going on with changes: {'; '.join(changes)}")
    write_json(workdir / "run.json", {**now, "starts": [*(run or {}).get("starts", []), now["started"]]})


def differences(run: dict[str, Any], fixed: dict[str, Any]) -> list[str]:
    """What differs between the run that `run.json` tells of and this one's identity, a line each."""
    before = {**run["experiment"], "data_identity": run["data_identity"]}
    return diff({name: before.get(name) for name in fixed}, fixed)


def forked_from(workdir: Path) -> Path | None:
    """The folder of the run that this one was forked from last, if it was."""
    return max(workdir.glob(f"{FORKED}*"), key=lambda folder: int(folder.name[len(FORKED) :]), default=None)


def move_aside(workdir: Path) -> None:
    """Moves the run in a folder into `forked_from_N` there; goes on where a kill interrupted it.

    `run.json` goes first: once it is gone, what is left in the folder belongs to the newest `forked_from_N`.
    """
    target = forked_from(workdir)
    if (workdir / "run.json").exists() or target is None:
        target = workdir / f"{FORKED}{1 if target is None else int(target.name[len(FORKED) :]) + 1}"
        target.mkdir()
    for name in ("run.json", "checkpoints", "broken", "metrics.jsonl", "summary.json", "tensorboard"):
        if (workdir / name).exists():
            (workdir / name).rename(target / name)


def take_weights(params: Any, weights: dict[str, Any], screen: Screen) -> Any:
    """The parameters, with those that `weights` has under the same path, shape and dtype taken from there."""
    fresh = []

    def take(path: Any, leaf: jax.Array) -> jax.Array:
        found = weights.get(path_name(path))
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            fresh.append(path_name(path))
            return leaf
        return jax.device_put(np.asarray(found), leaf.sharding)

    taken, count = jax.tree_util.tree_map_with_path(take, params), len(leaves(params))
    screen.say(f"forked: {count - len(fresh)} of {count} parameters from the old run; fresh: {fresh or 'none'}")
    return taken
