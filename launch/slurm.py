"""Checks a run and prints its Slurm script, one process per GPU or node; `--submit` submits it.

    python -m jaxbig.launch.slurm pytext_transformer --nodes 2 --time 4:00:00 --partition main \\
        -- --steps 100 > run.sbatch
    python -m jaxbig.launch.slurm pytext_transformer --nodes 2 --time 4:00:00 --partition main \\
        --submit -- --steps 100

Slurm's warning before the time limit, its preemption and `scontrol requeue` all send SIGTERM:
jaxbig saves and exits 75, the job is queued again, and resumes. The job has the environment of this
shell, as usual with Slurm. --data names the folder of prepared datasets; caches are then next to
the runs, for all nodes.
"""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import tyro

from jaxbig.errors import Failed, Refused
from jaxbig.launch.common import WORD, Flag, Launcher, at_least, data_variables, exports, main, safe

TIME = r"(\d+-)?\d+(:\d\d){0,2}"
EXIT_S = 120
"""Seconds in which all processes must exit after the first one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """A job of a Slurm cluster."""

    nodes: int = 1
    gpus: int = 0
    """GPUs per node."""
    cpus: int = 0
    """Cores per process; default: the job's cores on a node, divided by its processes."""
    memory: str = ""
    """Memory per node, as in 64G."""
    time: str = "1:00:00"
    """Time limit, after which the job is queued again: minutes, H:MM:SS or D-HH:MM:SS."""
    partition: str = ""
    account: str = ""
    constraint: str = ""
    """The kind of nodes, as the cluster names it."""
    warn: int = 300
    """Seconds before the time limit at which a run saves; a step, an evaluation and a save must
    fit in."""
    no_requeue: Flag = False
    """Do not queue a stopped job again."""
    data: str = ""
    """A folder of prepared datasets that all nodes see; TFDS_DATA_DIR is set to it."""
    container: str = ""
    """An image for Apptainer with jaxbig installed."""
    at_once: int = 0
    """The maximum number of a sweep's jobs that run at once; 0: no maximum."""
    elements: tyro.conf.Suppress[tuple[tuple[int, tuple[str, ...]], ...]] = ()
    """Number and overrides of each run of a sweep."""

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
        """The options of sbatch; empty ones are left out."""
        numbers = [number for number, _ in self.elements]
        array = ",".join(map(str, numbers)) + (f"%{self.at_once}" if self.at_once else "")
        options = {
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
        return {name: value for name, value in options.items() if value}

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
                "# shellcheck disable=SC1003,SC2016  # options are quoted: nothing is expanded"
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
        srun = f'srun --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait={EXIT_S}'
        lines += [f'{srun} "${{run[@]}}"', "code=$?"]
        if not self.no_requeue:
            lines.append("# 75: stopped and saved; resumes")
            lines.append('if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi')
        return "\n".join([*lines, 'exit "$code"'])

    @property
    def variables(self) -> dict[str, str]:
        """Caches are next to the runs only if --data shows that nodes share folders."""
        runs = Path(self.workdir).parent.as_posix() if self.workdir else "runs"
        return data_variables(self.data, runs) if self.data else {}

    def cores(self) -> list[str]:
        """Shell lines that set `cpus`, the cores per process.

        srun needs them: since Slurm 22.05 it ignores sbatch's --cpus-per-task and would bind a
        process to one core.
        """
        if self.cpus:
            return [f"cpus={self.cpus}"]
        return [
            f"cpus=$((${{SLURM_CPUS_ON_NODE:-1}} / {self.each_node}))",
            '[ "$cpus" -gt 0 ] || cpus=1',
        ]

    @property
    def each_node(self) -> int:
        """Processes per node."""
        return max(self.gpus, 1)

    def start(self) -> int:
        try:
            return subprocess.run(
                ["sbatch"], input=self.render() + "\n", text=True, check=False
            ).returncode
        except FileNotFoundError:
            raise Failed("there is no sbatch here: submit from a machine of the cluster.") from None


if __name__ == "__main__":
    sys.exit(main(Slurm, "jaxbig.launch.slurm"))
