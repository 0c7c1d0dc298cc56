"""Makes and reads run.json, the description of a run: experiment, versions, devices, data."""

import logging
import time
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.deserialize import COPY, modules_of, not_written, read_description, read_run_file
from jaxbig.config.experiment import Experiment
from jaxbig.config.own_code import code_of
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused
from jaxbig.system.environment import config, devices, flags, git_commit, versions
from jaxbig.system.json_files import read_json, warn_once, write_json
from jaxbig.tracking.metrics_writer import copy_to_broken

log = logging.getLogger("jaxbig")


def describe(
    experiment: Experiment, *, fingerprint: str, data_identity: str, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """The content of `run.json` but for its history: `weights` and `starts`.

    Args:
      experiment: what is trained.
      fingerprint: of the run's identity.
      data_identity: of the data as prepared.
      mesh: the devices' mesh.
    """
    device = jax.devices()[0]
    software = {
        name: value for name, value in devices().items() if name in ("platform_version", "driver")
    }
    return {
        "experiment": to_json(experiment),
        "modules": modules_of(experiment),
        "code": code_of(experiment),
        "fingerprint": fingerprint,
        "data_identity": data_identity,
        "versions": versions(),
        "flags": flags(),
        "config": config(),
        "devices": {
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "kind": device.device_kind,
            "platform": device.platform,
            **software,
        },
        "mesh": dict(mesh.shape),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


ADOPT = (
    "or, if the same command, code and data made its checkpoints, resume from them with "
    "`jaxbig train ... --adopt`"
)
"""The advice where `run.json` is lost."""


def read_run(workdir: Path, adopt: bool = False) -> dict[str, Any] | None:
    """The `run.json` of a run directory, or None if there is none.

    Args:
      workdir: the directory.
      adopt: return None for a `run.json` that cannot be read, too.

    Raises:
      Refused: jaxbig did not write it.
    """
    try:
        run = read_run_file(workdir)
        if run is not None and "data_identity" not in run:
            raise Refused(not_written(workdir / "run.json"))
        return run
    except Refused as error:
        if adopt:
            return None
        raise Refused(f"{str(error).rstrip('.')}; {ADOPT}.") from None


def write_run_file(workdir: Path, run: dict[str, Any]) -> None:
    """Writes `run.json` and its copy; keeps one that was broken in `broken/`."""
    file = workdir / "run.json"
    try:
        read_description(file)
    except Refused:
        if file.is_file():
            kept = copy_to_broken(file, file.read_bytes())
            log.warning("%s was broken: it is written again, and kept as %s", file, kept)
    (workdir / COPY).parent.mkdir(exist_ok=True)
    for each in (file, workdir / COPY):  # one after the other: a power loss breaks one at most
        write_json(each, run)


def read_summary(workdir: Path) -> dict[str, Any]:
    """The content of `summary.json`; empty if there is none, or, with a warning, a broken one."""
    file = workdir / "summary.json"
    try:
        return read_json(file) or {}
    except Refused:
        warn_once(f"{file} is broken: it is left out until `jaxbig train` there writes it again.")
        return {}
