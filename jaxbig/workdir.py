"""What `run.json` says of a run."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from jaxbig.errors import Refused
from jaxbig.tracking.metrics import read_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


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
