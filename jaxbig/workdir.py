"""The folder of a run: who holds it, what run it is, and whether this one may continue it."""

import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxbig.errors import Refused
from jaxbig.experiment import diff
from jaxbig.tracking.metrics import read_json, write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FORKED = "forked_from_"


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the folder for this run alone; `Refused` if another live run has it or it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "writable.partial").open("w") as probe:
            probe.write("")
        (workdir / "writable.partial").unlink()
        lock = filelock.FileLock(workdir / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = (
            (workdir / "holder").read_text().strip() if (workdir / "holder").exists() else "another process"
        )
        raise Refused(f"{workdir} is in use by {holder}: stop that run, or give another --workdir.") from None
    except OSError as error:
        raise Refused(
            f"cannot write in {workdir}: {error.strerror or error}; give another --workdir."
        ) from None
    try:
        (workdir / "holder").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        (workdir / "holder").unlink(missing_ok=True)
        lock.release()


def describe(
    experiment: dict[str, Any], fixed: dict[str, Any], fingerprint: str, mesh: jax.sharding.Mesh
) -> dict:
    """What `run.json` says of a run besides how it came to be."""
    devices = jax.devices()
    return {
        "experiment": experiment,
        "fingerprint": fingerprint,
        "data_identity": fixed["data_identity"],
        "versions": versions(),
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "mesh": dict(mesh.shape),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's bits depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def git_commit() -> str | None:
    """The commit of the folder the command runs in, with `-dirty` where files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def check_same(run: dict[str, Any], fixed: dict[str, Any], workdir: Path) -> None:
    """`Refused` if the run in a folder is not the one that would go on there; names each difference."""
    before = {**run["experiment"], "data_identity": run["data_identity"]}
    lines = diff({name: before.get(name) for name in fixed}, fixed)
    if lines:
        raise Refused(
            f"{workdir} holds another run ({'; '.join(lines)}): give another --workdir, "
            f"or --fork to begin anew there from its weights (the old run is kept in {workdir}/{FORKED}N)."
        )


def forked_from(workdir: Path) -> Path | None:
    """The folder of the run that this one was forked from last, if it was."""
    folders = [folder for folder in workdir.glob(f"{FORKED}*") if folder.name[len(FORKED) :].isdigit()]
    return max(folders, key=lambda folder: int(folder.name[len(FORKED) :]), default=None)


def fork(workdir: Path) -> None:
    """Moves the run in a folder whole into `forked_from_N` there; goes on where a kill interrupted it."""
    last = forked_from(workdir)
    if (workdir / "run.json").exists():  # its move is what decides
        last = workdir / f"{FORKED}{1 if last is None else int(last.name[len(FORKED) :]) + 1}"
        last.mkdir()
        (workdir / "run.json").rename(last / "run.json")
    assert last is not None
    for name in ("checkpoints", "broken", "metrics.jsonl", "summary.json", "tensorboard"):
        if (workdir / name).exists():
            (workdir / name).rename(last / name)


def read_run(workdir: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder, or None; `Refused` if it is not one of jaxbig's."""
    try:
        run = read_json(workdir / "run.json")
    except (OSError, json.JSONDecodeError) as error:
        raise Refused(f"{workdir}/run.json cannot be read: {error}; give another --workdir.") from None
    if run is not None and not {"experiment", "data_identity"} <= set(run):
        raise Refused(f"{workdir}/run.json was not written by jaxbig: give another --workdir.")
    return run


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole, or leaves the old file."""
    write_atomically(file, json.dumps(value, indent=1) + "\n")
