"""TPU VMs by gcloud: create, install, run on all workers, follow, delete.

    python -m launch.tpu_vm c4_llama_1b --zone us-east5-a --type v5p-128 --image v2-alpha-tpuv5 -- --workdir /mnt/runs/a
    python -m launch.tpu_vm c4_llama_1b ... --queued --spot --do create wait --submit
    python -m launch.tpu_vm c4_llama_1b ... --do follow --submit

Prints the commands of --do, and with --submit carries them out one after another, to the first that fails. This folder
is copied to every machine and installed there. A spot machine that was taken away is created anew by the same commands,
and the run goes on from its --workdir, a folder that all machines see (a bucket that is mounted, or NFS).
"""

import dataclasses
import shlex
import subprocess
import sys
from typing import Literal

from jaxbig.errors import Failed, Refused
from launch.common import NAME, CloudLauncher, Flag, at_least, main, safe

Action = Literal["create", "wait", "install", "run", "follow", "stop", "delete"]
HOME = "jaxbig"
"""The folder on each machine that gets what is in this one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm(CloudLauncher):
    """TPU VMs by gcloud."""

    zone: str
    type: str
    """The accelerator, as in v5p-128 or v6e-16."""
    image: str
    """The software of the machines, as in v2-alpha-tpuv5."""
    project: str = ""
    """gcloud's own if it is not given."""
    slices: int = 1
    """How many such accelerators make the run; more than one are queued for."""
    queued: Flag = False
    """Wait in the queue for them, rather than be refused."""
    spot: Flag = False
    """Machines that cost less and can be taken away."""
    do: tuple[Action, ...] = ("create", "install", "run")
    """What, in this order."""

    def check(self) -> None:
        super().check()
        for option in ("zone", "type", "image", *(["project"] if self.project else [])):
            safe(f"--{option}", getattr(self, option))
        at_least("--slices", self.slices)
        if not self.do:
            raise Refused("--do needs one or more of create, wait, install, run, follow, stop and delete.")
        safe("the run's name", self.title, NAME)

    @property
    def queues(self) -> bool:
        return self.queued or self.slices > 1

    @property
    def machines(self) -> list[str]:
        """The names of the TPUs, one a slice."""
        return [f"{self.title}-{i}" for i in range(self.slices)] if self.slices > 1 else [self.title]

    def gcloud(self, kind: str, verb: str, *more: str) -> list[str]:
        where = ["--zone", self.zone, *(["--project", self.project] if self.project else [])]
        return ["gcloud", "compute", "tpus", kind, verb, *more, *where]

    def ssh(self, machine: str, text: str, worker: str = "all") -> list[str]:
        """A command for the shell of each of a TPU's machines: `text` must be quoted for it."""
        return self.gcloud("tpu-vm", "ssh", machine, "--worker", worker, "--command", text)

    def create(self) -> list[list[str]]:
        asked = ["--accelerator-type", self.type, *(["--spot"] if self.spot else [])]
        if not self.queues:
            return [self.gcloud("tpu-vm", "create", self.title, *asked, "--version", self.image)]
        many = ["--node-count", str(self.slices), "--node-prefix", self.title]
        nodes = many if self.slices > 1 else ["--node-id", self.title]
        return [self.gcloud("queued-resources", "create", self.title, *nodes, *asked, "--runtime-version", self.image)]

    def wait(self) -> list[list[str]]:
        """Tells whether they are there: ACTIVE in the queue, READY without one."""
        kind = "queued-resources" if self.queues else "tpu-vm"
        return [self.gcloud(kind, "describe", self.title, "--format", "value(state)")]

    def install(self) -> list[list[str]]:
        """Python 3.11 by uv, since the machines' own may be older."""
        steps = [
            "python3 -m pip install --quiet --user uv",
            "python3 -m uv venv --quiet --allow-existing --python 3.11 .venv",
            f"python3 -m uv pip install --quiet --python .venv -e '{HOME}[tpu]'",
        ]
        copy = [
            self.gcloud("tpu-vm", "scp", "--recurse", ".", f"{each}:{HOME}", "--worker", "all")
            for each in self.machines
        ]
        return copy + [self.ssh(each, " && ".join(steps)) for each in self.machines]

    def run(self) -> list[list[str]]:
        """In the background of each machine, which need not be watched. Secrets come from Google's Secret Manager, by
        name, and go nowhere but into the environment of the run."""
        fetched = [
            f'{name}="$(gcloud secrets versions access latest --secret={name})" && export {name}'
            for name in self.secrets
        ]
        train = shlex.join([f"../.venv/bin/{self.command()[0]}", *self.command()[1:], "--coordinator", "auto"])
        text = " && ".join(
            [
                f"cd {HOME}",
                *fetched,
                f"(nohup {train} >../{self.title}.log 2>&1 </dev/null & echo $! >../{self.title}.pid)",
            ]
        )
        return [self.ssh(each, text) for each in self.machines]

    def follow(self) -> list[list[str]]:
        return [self.ssh(self.machines[0], f"tail -n 50 -F {self.title}.log", worker="0")]

    def stop(self) -> list[list[str]]:
        """Asks the run to save and leave, so that it can go on."""
        return [self.ssh(each, f"kill -TERM $(cat {self.title}.pid)") for each in self.machines]

    def delete(self) -> list[list[str]]:
        if self.queues:
            return [self.gcloud("queued-resources", "delete", self.title, "--force", "--quiet")]
        return [self.gcloud("tpu-vm", "delete", self.title, "--quiet")]

    def commands(self) -> list[list[str]]:
        """All that is asked for, each a list of arguments."""
        return [command for action in self.do for command in getattr(self, action)()]

    def render(self) -> str:
        return "\n".join(shlex.join(command) for command in self.commands())

    def start(self) -> int:
        for command in self.commands():
            try:
                code = subprocess.run(command, check=False).returncode
            except FileNotFoundError:
                raise Failed("there is no gcloud here: install Google Cloud's command line, and log in.") from None
            if code:
                return code
        return 0


if __name__ == "__main__":
    sys.exit(main(TpuVm, "launch.tpu_vm"))
