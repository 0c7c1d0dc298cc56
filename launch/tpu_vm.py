"""Checks a run and prints its gcloud commands for TPU VMs, create to delete; `--submit` runs them.

    python -m jaxbig.launch.tpu_vm c4_llama_1b --zone us-east5-a --type v5p-128 \\
        --image v2-alpha-tpuv5 --bucket my-runs --data my-data
    python -m jaxbig.launch.tpu_vm c4_llama_1b ... --queued --spot --submit
    python -m jaxbig.launch.tpu_vm c4_llama_1b ... --do follow --submit

Prints the commands of --do; with --submit runs them one after another, up to the first that fails.
Machines are created and waited for (for hours, if they are queued) before anything is installed.
This folder is copied to every machine and installed there.

All machines must see the run's folder. --bucket is a Cloud Storage bucket that gcsfuse mounts at
/mnt/runs on each; with another disk that all mount, such as Filestore, name the folder by --workdir
after `--`. A bucket with a hierarchical namespace renames a checkpoint's folder at once; in a flat
one gcsfuse renames file by file. A spot machine that was taken away is created again by the same
commands (after `--do delete`), and the run resumes from its folder.
"""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

from jaxbig.errors import Failed, Refused
from jaxbig.launch.common import (
    BUCKET,
    NAME,
    WORD,
    CloudLauncher,
    Flag,
    at_least,
    data_variables,
    exports,
    main,
    safe,
)

Action = Literal["create", "wait", "install", "run", "follow", "stop", "delete"]
HOME = "jaxbig"
"""The copy of this folder on each machine."""
RUNS = "/mnt/runs"
"""Mount path of the bucket for runs."""
DATA = "/mnt/data"
"""Mount path of the bucket for data."""
GCSFUSE = (
    "{ command -v gcsfuse >/dev/null || { "
    'repository="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" && '
    'echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $repository" | '
    "sudo tee /etc/apt/sources.list.d/gcsfuse.list && "
    "curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | "
    "sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null && "
    "sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse; }; }"
)
"""Installs gcsfuse (cloud.google.com/storage/docs/cloud-storage-fuse/install)."""
MOUNT = (
    '{{ mountpoint -q {place} || {{ sudo mkdir -p {place} && sudo chown "$USER" {place} && '
    "gcsfuse --implicit-dirs --rename-dir-limit=100000 {bucket} {place}; }}; }}"
)
WAIT = (
    'while state=$({describe}); do echo "{name}: $state"; '
    'case "$state" in {ready}) exit 0 ;; {ended}) exit 1 ;; esac; sleep 30; done; exit 1'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm(CloudLauncher):
    """A run on TPU VMs with gcloud."""

    zone: str
    type: str
    """The accelerator type, as in v5p-128 or v6e-16."""
    image: str
    """The software version of the machines, as in v2-alpha-tpuv5."""
    project: str = ""
    """The project; default: gcloud's own."""
    slices: int = 1
    """Number of slices; more than one are always queued."""
    queued: Flag = False
    """Queue the request if no machine is free."""
    spot: Flag = False
    """Use spot machines, which cost less and can be taken away."""
    bucket: str = ""
    """A Cloud Storage bucket for runs and caches, mounted at /mnt/runs on every machine."""
    data: str = ""
    """A Cloud Storage bucket with prepared datasets, mounted at /mnt/data on every machine, or the
    path of a folder that all machines have mounted."""
    do: tuple[Action, ...] = ("create", "wait", "install", "run")
    """The actions, in this order."""

    def check(self) -> None:
        super().check()
        for option in ("zone", "type", "image", *(["project"] if self.project else [])):
            safe(f"--{option}", getattr(self, option))
        if self.bucket:
            safe("--bucket", self.bucket, BUCKET)
        if self.data:
            safe("--data", self.data, rf"{BUCKET}|/{WORD}")
        at_least("--slices", self.slices)
        if not self.do:
            raise Refused(
                "--do needs one or more of create, wait, install, run, follow, stop and delete."
            )
        safe("the run's name", self.title, NAME)
        if "run" in self.do and not self.bucket and not self.workdir:
            raise Refused(
                "all machines must see one folder of the run, and it must outlive them: give "
                "--bucket BUCKET, or after -- a --workdir on a disk that all have mounted."
            )

    @property
    def buckets(self) -> dict[str, str]:
        """Mount path -> bucket."""
        data = {DATA: self.data} if self.data and not self.data.startswith("/") else {}
        return ({RUNS: self.bucket} if self.bucket else {}) | data

    @property
    def variables(self) -> dict[str, str]:
        runs = str(Path(self.workdir).parent) if self.workdir else RUNS
        return data_variables(self.data if self.data.startswith("/") else self.data and DATA, runs)

    @property
    def queues(self) -> bool:
        return self.queued or self.slices > 1

    @property
    def machines(self) -> list[str]:
        """The names of the TPUs, one per slice."""
        return (
            [f"{self.title}-{i}" for i in range(self.slices)] if self.slices > 1 else [self.title]
        )

    def gcloud(self, kind: str, action: str, *more: str) -> list[str]:
        where = ["--zone", self.zone, *(["--project", self.project] if self.project else [])]
        return ["gcloud", "compute", "tpus", kind, action, *more, *where]

    def ssh(self, machine: str, text: str, worker: str = "all") -> list[str]:
        """A shell command on a TPU's machines; `text` must be quoted for the shell."""
        return self.gcloud("tpu-vm", "ssh", machine, "--worker", worker, "--command", text)

    def create(self) -> list[list[str]]:
        asked = ["--accelerator-type", self.type, *(["--spot"] if self.spot else [])]
        if not self.queues:
            return [self.gcloud("tpu-vm", "create", self.title, *asked, "--version", self.image)]
        many = ["--node-count", str(self.slices), "--node-prefix", self.title]
        nodes = many if self.slices > 1 else ["--node-id", self.title]
        return [
            self.gcloud(
                "queued-resources",
                "create",
                self.title,
                *nodes,
                *asked,
                "--runtime-version",
                self.image,
            )
        ]

    def wait(self) -> list[list[str]]:
        """Waits until the machines are ready, or have failed."""
        kind, path = ("queued-resources", "state.state") if self.queues else ("tpu-vm", "state")
        describe = shlex.join(
            self.gcloud(kind, "describe", self.title, "--format", f"value({path})")
        )
        ended = "FAILED|SUSPENDING|SUSPENDED|DELETING|PREEMPTED|TERMINATED"
        ready = "ACTIVE" if self.queues else "READY"
        return [
            [
                "bash",
                "-c",
                WAIT.format(describe=describe, name=self.title, ready=ready, ended=ended),
            ]
        ]

    def install(self) -> list[list[str]]:
        """Copies and installs this folder, with Python 3.11 from uv: the machines' may be older."""
        steps = [
            "python3 -m pip install --quiet --user uv",
            "python3 -m uv venv --quiet --allow-existing --python 3.11 .venv",
            f"python3 -m uv pip install --quiet --python .venv -e '{HOME}[tpu]'",
        ]
        if self.buckets:
            steps.append(GCSFUSE)
        copy = [
            self.gcloud("tpu-vm", "scp", "--recurse", ".", f"{each}:{HOME}", "--worker", "all")
            for each in self.machines
        ]
        return copy + [self.ssh(each, " && ".join(steps)) for each in self.machines]

    def run(self) -> list[list[str]]:
        """Starts the run in the background of each machine.

        Secrets come from Google's Secret Manager, by name, and only go into the run's environment.
        """
        fetched = [
            f'{name}="$(gcloud secrets versions access latest --secret={name})" && export {name}'
            for name in self.secrets
        ]
        named = dataclasses.replace(self, name=self.title if self.bucket else self.name)
        program, *words = named.command("--coordinator", "auto", runs=RUNS)
        train = shlex.join([f"../.venv/bin/{program}", *words])
        mounts = [
            MOUNT.format(place=place, bucket=bucket) for place, bucket in self.buckets.items()
        ]
        text = " && ".join(
            [
                f"cd {HOME}",
                *mounts,
                *fetched,
                *exports(self.variables),
                f"(nohup {train} >../{self.title}.log 2>&1 </dev/null & "
                f"echo $! >../{self.title}.pid)",
            ]
        )
        return [self.ssh(each, text) for each in self.machines]

    def follow(self) -> list[list[str]]:
        return [self.ssh(self.machines[0], f"tail -n 50 -F {self.title}.log", worker="0")]

    def stop(self) -> list[list[str]]:
        """Requests that the run saves and exits; it can be resumed."""
        return [self.ssh(each, f"kill -TERM $(cat {self.title}.pid)") for each in self.machines]

    def delete(self) -> list[list[str]]:
        if self.queues:
            return [self.gcloud("queued-resources", "delete", self.title, "--force", "--quiet")]
        return [self.gcloud("tpu-vm", "delete", self.title, "--quiet")]

    def commands(self) -> list[list[str]]:
        """The commands of all actions, each a list of arguments."""
        return [command for action in self.do for command in getattr(self, action)()]

    def render(self) -> str:
        return "\n".join(shlex.join(command) for command in self.commands())

    def start(self) -> int:
        for command in self.commands():
            try:
                code = subprocess.run(command, check=False).returncode
            except FileNotFoundError:
                raise Failed(
                    "there is no gcloud here: install Google Cloud's command line, and log in."
                ) from None
            if code:
                return code
        return 0


if __name__ == "__main__":
    sys.exit(main(TpuVm, "jaxbig.launch.tpu_vm"))
