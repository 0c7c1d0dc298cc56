"""Checks a run and prints its SkyPilot task, on demand or spot; `--submit` launches it.

    python -m jaxbig.launch.sky pytext_transformer --accelerators H100:8 --nodes 2 --spot \\
        --bucket my-runs > task.yaml
    python -m jaxbig.launch.sky pytext_transformer --accelerators H100:8 --nodes 2 --spot \\
        --bucket my-runs --submit

This folder is copied to every machine and installed there. Runs and caches are in the bucket, which
all machines mount as /runs. Prepared datasets come from another bucket: --data my-data, mounted as
/data. The bucket of the runs needs a mount that can rename folders and overwrite files, as Google
Cloud Storage's (gcsfuse) can; SkyPilot mounts S3 by goofys, which cannot, and a run refuses such a
folder.
"""

import dataclasses
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed
from jaxbig.launch.common import (
    BUCKET,
    NAME,
    CloudLauncher,
    Flag,
    at_least,
    data_variables,
    main,
    safe,
    to_yaml,
)

PORT = 1234
RUNS = "/runs"
"""Mount path of the bucket for runs."""
DATA = "/data"
"""Mount path of the bucket for data."""
# a bucket, by which SkyPilot may send the working directory, holds no links
SETUP = """\
for each in experiments launch; do [ -e jaxbig/$each ] || ln -s ../$each jaxbig/$each; done
python3 -m pip install --quiet uv
python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
python3 -m uv pip install --quiet --python .venv -e '.[{extra}]'
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sky(CloudLauncher):
    """A SkyPilot job."""

    bucket: str
    """The bucket for runs; it is created if it does not exist."""
    data: str = ""
    """A bucket with prepared datasets, as NAME or gs://NAME, mounted at /data."""
    accelerators: str
    """Accelerators per machine, as SkyPilot names them: H100:8, tpu-v5p-8."""
    nodes: int = 1
    """Number of machines."""
    infra: str = ""
    """Cloud and region, as in gcp/us-central1; default: the cheapest."""
    spot: Flag = False
    """Use spot machines, which cost less and can be taken away; the run is then recovered."""
    restarts: int = 3
    """Number of restarts after failures; preemptions do not count."""

    def check(self) -> None:
        super().check()
        safe("--bucket", self.bucket, BUCKET)
        if self.data:
            safe("--data", self.data, rf"([a-z0-9]+://)?{BUCKET}")
        safe("--accelerators", self.accelerators)
        if self.infra:
            safe("--infra", self.infra)
        at_least("--nodes", self.nodes)
        at_least("--restarts", self.restarts, 0)
        safe("the run's name", self.title, NAME)

    def run(self) -> str:
        """The shell script of each machine; SkyPilot sets variables for its peers."""
        _, *words = dataclasses.replace(self, name=self.title).command(runs=RUNS)
        lines = [f"run=(.venv/bin/jaxbig {shlex.join(words)})"]
        if self.accelerators.startswith("tpu"):
            lines.append("run+=(--coordinator auto)")
        elif self.nodes > 1:
            lines.append(f'run+=(--coordinator "$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{PORT}")')
            lines.append('run+=(--processes "$SKYPILOT_NUM_NODES" --process "$SKYPILOT_NODE_RANK")')
        return "\n".join([*lines, 'exec "${run[@]}"', ""])

    @property
    def buckets(self) -> dict[str, str]:
        return {RUNS: self.bucket} | ({DATA: self.data} if self.data else {})

    def mount(self, bucket: str) -> dict[str, str]:
        return {"source" if "://" in bucket else "name": bucket, "mode": "MOUNT"}

    def task(self) -> dict[str, Any]:
        """The task, as SkyPilot reads it."""
        again = {"max_restarts_on_errors": self.restarts, "recover_on_exit_codes": [75]}
        resources = {
            "accelerators": self.accelerators,
            "use_spot": self.spot,
            "job_recovery": again,
        }
        return {
            "name": self.title,
            "num_nodes": self.nodes,
            "workdir": ".",
            "resources": resources | ({"infra": self.infra} if self.infra else {}),
            "file_mounts": {place: self.mount(bucket) for place, bucket in self.buckets.items()},
            "envs": data_variables(DATA if self.data else "", RUNS),
            **({"secrets": {name: None for name in self.secrets}} if self.secrets else {}),
            "setup": SETUP.format(extra="tpu" if self.accelerators.startswith("tpu") else "cuda"),
            "run": self.run(),
        }

    def render(self) -> str:
        return to_yaml(self.task())

    def start(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.title}.yaml"
            file.write_text(self.render())
            secrets = [word for name in self.secrets for word in ("--secret", name)]
            try:
                command = [
                    "sky",
                    "jobs",
                    "launch",
                    "--yes",
                    "--name",
                    self.title,
                    *secrets,
                    str(file),
                ]
                return subprocess.run(command, check=False).returncode
            except FileNotFoundError:
                raise Failed(
                    "there is no sky here: pip install skypilot, and log in to a cloud."
                ) from None


if __name__ == "__main__":
    sys.exit(main(Sky, "jaxbig.launch.sky"))
