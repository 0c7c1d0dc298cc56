"""A real Slurm of two nodes, n1 and n2, on this one machine.

It needs root and Debian's slurm-wlm and munge.

All its files lie in one folder, so that nothing else on the machine changes but two names in
/etc/hosts.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONF = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=2
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobRequeue=1
KillWait=60
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str:
    """Why there can be no Slurm here, or nothing."""
    programs = "slurmctld", "slurmd", "sbatch", "scontrol", "munged"
    lacking = [name for name in programs if not shutil.which(name)]
    if lacking:
        return f"{lacking[0]} is not here: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a Slurm can only be started by root"


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """Starts it in an empty folder; gives the environment in which sbatch and its kin find it."""
    ports = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        CONF.format(folder=folder, host=socket.gethostname().split(".")[0], ports=ports)
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    files = [
        f"--{kind}={folder}/munge.{kind.split('-')[0]}"
        for kind in ("key-file", "log-file", "pid-file", "seed-file")
    ]
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", "-N", node] for node in ("n1", "n2")),
    ]
    hosts = Path("/etc/hosts").read_text()
    daemons = []
    try:
        Path("/etc/hosts").write_text(f"{hosts.rstrip()}\n127.0.0.1 n1 n2\n")
        for command in commands:
            with (folder / f"{command[0]}.log").open("ab") as log:
                daemons.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
            time.sleep(1)
        for _ in range(60):
            asked = subprocess.run(
                ["sinfo", "-h", "-o", "%T"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if set(asked.stdout.split()) == {"idle"}:
                break
            time.sleep(1)
        else:
            raise RuntimeError("\n".join(log.read_text()[-1000:] for log in folder.glob("*.log")))
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--user=root"], env=environment, capture_output=True, check=False
        )
        time.sleep(2)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
        Path("/etc/hosts").write_text(hosts)
