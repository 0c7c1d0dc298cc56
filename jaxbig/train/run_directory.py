"""What `run.json` says of a run."""

import time
from pathlib import Path
from typing import Any

import jax

from jaxbig.errors import Refused
from jaxbig.system.environment import config, devices, flags, git_commit, versions
from jaxbig.system.json_files import read_json


def describe(
    experiment: Any, fingerprint: str, data_identity: str, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """What `run.json` says of a run besides how it came to be; `experiment` is its JSON."""
    device, of = jax.devices()[0], {"count": jax.device_count(), "processes": jax.process_count()}
    software = {
        name: value for name, value in devices().items() if name in ("platform_version", "driver")
    }
    return {
        "experiment": experiment,
        "fingerprint": fingerprint,
        "data_identity": data_identity,
        "versions": versions(),
        "flags": flags(),
        "config": config(),
        "devices": {**of, "kind": device.device_kind, "platform": device.platform, **software},
        "mesh": dict(mesh.shape),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


ADOPT = "or, if the same command, code and data made its checkpoints, go on from them with `jaxbig train ... --adopt`"


def read_run(workdir: Path, adopt: bool = False) -> dict[str, Any] | None:
    """The `run.json` of a folder, or None; `Refused` if it is not one of jaxbig's. adopt: None then, too."""
    try:
        run = read_json(workdir / "run.json")
        if run is not None and not {"experiment", "data_identity"} <= set(run):
            raise Refused(
                f"{workdir}/run.json was not written by jaxbig: bring back a copy, or give another --workdir."
            )
    except Refused as error:
        if adopt:
            return None
        raise Refused(f"{str(error).rstrip('.')}; {ADOPT}.") from None
    return run
