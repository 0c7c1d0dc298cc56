"""A Slurm job: one process a GPU, or a node without GPUs.

    python -m launch.slurm pytext_transformer --nodes 2 --time 4:00:00 --partition main -- --steps 100 > run.sbatch
    python -m launch.slurm pytext_transformer --nodes 2 --time 4:00:00 --partition main --submit -- --steps 100

Slurm's warning before the time limit, its preemption and `scontrol requeue` all send SIGTERM: jaxbig saves and exits
75, the job is queued again, and goes on where it was. The job has the environment of this shell, as is Slurm's way;
--data names the folder of prepared data sets, and then caches lie beside the run, for all nodes.
"""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import tyro

from jaxbig.errors import Failed, Refused
from launch.common import WORD, Flag, Launcher, at_least, data_variables, exports, main, safe

TIME = r"(\d+-)?\d+(:\d\d){0,2}"
LEAVE = 120
"""Seconds that processes have to leave after the first of them has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """A job of a Slurm cluster."""

    nodes: int = 1
    gpus: int = 0
    """Of each node."""
    cpus: int = 0
    """Cores of each process; if it is not given, the node's cores that the job got, divided by its processes."""
    memory: str = ""
    """Of each node, as in 64G."""
    time: str = "1:00:00"
    """After which the job is stopped and queued again: minutes, H:MM:SS or D-HH:MM:SS."""
    partition: str = ""
    account: str = ""
    constraint: str = ""
    """Of which kind the nodes are, as the cluster names it."""
    warn: int = 300
    """Seconds before the end of its time in which a run saves; a step, an evaluation and a save must fit in."""
    no_requeue: Flag = False
    """Leave a job that was stopped as it is."""
    data: str = ""
    """A folder with prepared data sets, which all nodes see; TFDS_DATA_DIR names it."""
    container: str = ""
    """An image for Apptainer, which has jaxbig in it."""
    at_once: int = 0
    """Of the jobs of a sweep, how many run at once at most; 0: as many as can."""
    elements: tyro.conf.Suppress[tuple[tuple[int, tuple[str, ...]], ...]] = ()
    """Of a sweep: (number, overrides) of each."""

    def check(self) -> None:
        super().check()
        at_least("--nodes", self.nodes)
        for option, value in (
            ("--gpus", self.gpus),
            ("--cpus", self.cpus),
            ("--at-once", self.at_once),
        ):
            at_least(option, value, 0)
        safe("--time", self.time, TIME)
        for option in ("partition", "account", "constraint", "memory"):
            if value := getattr(self, option):
                safe(f"--{option}", value)
        for option in ("container", "data"):
            if value := getattr(self, option):
                safe(f"--{option}", value, rf"/?{WORD}")
        if not 0 < self.warn <= 65535:
            raise Refused(f"--warn {self.warn}: Slurm takes 1 to 65535 seconds.")

    def directives(self) -> dict[str, object]:
        """What sbatch is asked for, option by option; those with an empty value are left out."""
        numbers = [number for number, _ in self.elements]
        array = ",".join(map(str, numbers)) + (f"%{self.at_once}" if self.at_once else "")
        asked = {
            "job-name": self.title,
            "array": array if numbers else "",
            "nodes": self.nodes,
            "ntasks-per-node": self.each_node,
            "gpus-per-node": self.gpus,
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "constraint": self.constraint,
            "signal": f"TERM@{self.warn}",
            "output": f"{self.title}-{'%A-%a' if numbers else '%j'}.out",
            "open-mode": "append",
        }
        return {name: value for name, value in asked.items() if value}

    def render(self) -> str:
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in self.directives().items()),
        ]
        lines.append("#SBATCH --no-requeue" if self.no_requeue else "#SBATCH --requeue")
        lines.append("")
        if re.search(
            r"[$`\\]",
            shlex.join(
                [*self.command(), *(each for _, options in self.elements for each in options)]
            ),
        ):
            lines.append(
                "# shellcheck disable=SC1003,SC2016  # options are as they were written: nothing in them is expanded"
            )
        if self.elements:
            lines.append("case $SLURM_ARRAY_TASK_ID in")
            for number, overrides in self.elements:
                lines.append(f"  {number}) options=({shlex.join(overrides)}) ;;")
            lines += ["  *) exit 2 ;;", "esac"]
        lines += exports(self.variables)
        bind = ["--bind", self.data] if self.data else []
        nv = ["--nv"] if self.gpus else []
        inside = ["apptainer", "exec", *nv, *bind, self.container] if self.container else []
        more = ' "${options[@]}"' if self.elements else ""
        command = (
            dataclasses.replace(self, name="") if self.elements else self
        )  # each has its own --workdir
        lines.append(f"run=({shlex.join([*inside, *command.command()])}{more})")
        lines += ["", *self.cores()]
        srun = f'srun --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait={LEAVE}'
        lines += [f'{srun} "${{run[@]}}"', "code=$?"]
        if not self.no_requeue:
            lines.append("# 75: stopped and saved, goes on where it was")
            lines.append('if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi')
        return "\n".join([*lines, 'exit "$code"'])

    @property
    def variables(self) -> dict[str, str]:
        """Caches lie beside the runs only where --data says that nodes share folders."""
        runs = Path(self.workdir).parent.as_posix() if self.workdir else "runs"
        return data_variables(self.data, runs) if self.data else {}

    def cores(self) -> list[str]:
        """Lines that set `cpus`, the cores of each process. srun must be given them: since Slurm 22.05 it does not
        take sbatch's --cpus-per-task, and binds a process to one core then."""
        if self.cpus:
            return [f"cpus={self.cpus}"]
        return [
            f"cpus=$((${{SLURM_CPUS_ON_NODE:-1}} / {self.each_node}))",
            '[ "$cpus" -gt 0 ] || cpus=1',
        ]

    @property
    def each_node(self) -> int:
        """Processes of each node."""
        return max(self.gpus, 1)

    def start(self) -> int:
        try:
            return subprocess.run(
                ["sbatch"], input=self.render() + "\n", text=True, check=False
            ).returncode
        except FileNotFoundError:
            raise Failed("there is no sbatch here: submit from a machine of the cluster.") from None


if __name__ == "__main__":
    sys.exit(main(Slurm, "launch.slurm"))
