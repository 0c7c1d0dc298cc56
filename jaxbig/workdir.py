"""The folder of a run: who holds it, and what `run.json` says of the run."""

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
from jaxbig.processes import first, leading
from jaxbig.tracking.metrics import read_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the folder for this run alone; `Refused` if another live run has it or it cannot be written."""
    holder, lock = workdir / "holder", filelock.FileLock(workdir / "lock")

    def take() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except filelock.Timeout:
            who = holder.read_text().strip() if holder.exists() else "another process"
            raise Refused(f"{workdir} is in use by {who}: stop that run, or give another --workdir.") from None
        except OSError as error:
            raise Refused(f"cannot write in {workdir}: {error.strerror or error}; give another --workdir.") from None

    first(take)
    try:
        yield
    finally:
        if leading():
            holder.unlink(missing_ok=True)
            lock.release()


def versions() -> dict[str, str]:
    """Of Python and of what the numbers of a run depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def describe(experiment: Any, fingerprint: str, data_identity: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What `run.json` says of a run besides how it came to be; `experiment` is its JSON."""
    device, of = jax.devices()[0], {"count": jax.device_count(), "processes": jax.process_count()}
    return {
        "experiment": experiment,
        "fingerprint": fingerprint,
        "data_identity": data_identity,
        "versions": versions(),
        "devices": {**of, "kind": device.device_kind, "platform": device.platform},
        "mesh": dict(mesh.shape),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """The commit of the folder the command runs in, with `-dirty` where files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_run(workdir: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder, or None; `Refused` if it is not one of jaxbig's."""
    try:
        run = read_json(workdir / "run.json")
    except (OSError, json.JSONDecodeError) as error:
        raise Refused(f"{workdir}/run.json cannot be read: {error}; give another --workdir.") from None
    if run is not None and not {"experiment", "data_identity"} <= set(run):
        raise Refused(f"{workdir}/run.json was not written by jaxbig: give another --workdir.")
    return run
