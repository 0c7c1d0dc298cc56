"""Checks a run and prints its JobSet for Google Kubernetes Engine; `--submit` creates it.

    python -m jaxbig.launch.gke c4_llama_7b --image IMAGE --claim runs --data tfds \\
        --tpu v5p:4x4x8 --slices 2 -- --mesh.data 2 > run.yaml
    python -m jaxbig.launch.gke c4_llama_1b --image IMAGE --claim runs --data tfds \\
        --gpu nvidia-h100-80gb --nodes 4 --submit

The cluster needs JobSet's controller, and the image needs jaxbig. Both claims (--claim for runs,
--data for prepared datasets) need volumes that all pods can mount for writing, such as Filestore.
Prepare the dataset once, with TFDS_DATA_DIR on that volume: `jaxbig data prepare c4_llama_7b`. A
claim on a Cloud Storage bucket needs a hierarchical namespace, or the mount option
rename-dir-limit=100000: checkpoints are committed by renaming a folder.

A preempted run (exit 75, or its node taken away) is restarted without limit; one that fails is
restarted `--restarts` times. A pod that stops because another pod of its run was lost exits 69,
which does not count as a failure.
"""

import dataclasses
import math
import subprocess
import sys
from typing import Any

from jaxbig.errors import Failed, Refused
from jaxbig.launch.common import (
    NAME,
    CloudLauncher,
    Flag,
    at_least,
    data_variables,
    main,
    safe,
    to_yaml,
)
from jaxbig.system.exit_codes import PEER_LOST

TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
"""GKE's names of the kinds (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)."""
CHIPS = 4
"""Chips per machine, in a slice of at least this many."""
PORT = 1234
SPOT = "cloud.google.com/gke-spot"
GRACE_S = 120
"""Default grace period in seconds."""
SPOT_GRACE_S = 15
"""The most that GKE gives a pod whose spot machine is taken away
(cloud.google.com/kubernetes-engine/docs/concepts/spot-vms)."""
RUNS = "/runs"
"""Mount path of the claim for runs."""
DATA = "/data"
"""Mount path of the claim for data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke(CloudLauncher):
    """A JobSet on Google Kubernetes Engine."""

    image: str
    """A container image with jaxbig installed."""
    claim: str
    """A PersistentVolumeClaim for runs and caches, mounted at /runs."""
    data: str = ""
    """A PersistentVolumeClaim with prepared datasets, mounted at /data."""
    tpu: str = ""
    """Kind (v4, v5e, v5p or v6e) and topology of a slice, as in v5p:4x4x8."""
    slices: int = 1
    """Number of slices."""
    gpu: str = ""
    """Kind of GPU, as GKE names it: nvidia-h100-80gb."""
    gpus: int = 8
    """GPUs per node."""
    nodes: int = 1
    """Number of nodes with GPUs."""
    spot: Flag = False
    """Use spot machines, which cost less and can be taken away."""
    restarts: int = 3
    """Number of restarts after failures; preemptions do not count."""
    leave: int = 0
    """Grace period in seconds, in which a step, an evaluation and a save must fit. Default:
    120; with --spot 15, GKE's maximum."""
    secret: str = ""
    """The Kubernetes Secret with the variables that --secrets names, each under its own name."""
    namespace: str = "default"

    def check(self) -> None:
        super().check()
        safe("--image", self.image)
        for option in (
            "claim",
            "namespace",
            *(each for each in ("secret", "data") if getattr(self, each)),
        ):
            safe(f"--{option}", getattr(self, option), r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
        for option in ("slices", "gpus", "nodes"):
            at_least(f"--{option}", getattr(self, option))
        for option in ("restarts", "leave"):
            at_least(f"--{option}", getattr(self, option), 0)
        if self.spot and self.leave > SPOT_GRACE_S:
            raise Refused(
                f"--leave {self.leave} with --spot: GKE gives a pod {SPOT_GRACE_S} s at best when "
                f"it takes a spot machine away; leave --leave out, and save often "
                f"(--checkpoint-every)."
            )
        if bool(self.tpu) == bool(self.gpu):
            raise Refused("give --tpu KIND:TOPOLOGY or --gpu KIND: the machines to run on.")
        if self.tpu:
            kind, _, topology = self.tpu.partition(":")
            if kind not in TPUS:
                raise Refused(f"--tpu {self.tpu!r}: its kind must be one of {', '.join(TPUS)}.")
            safe("--tpu", topology, r"[1-9]\d*(x[1-9]\d*){1,2}")
            if self.chips > CHIPS and self.chips % CHIPS:
                raise Refused(
                    f"--tpu {self.tpu}: {self.chips} chips do not make whole machines of {CHIPS}."
                )
        else:
            safe("--gpu", self.gpu)
        if bool(self.secrets) != bool(self.secret):
            raise Refused(
                "--secrets NAME and --secret OBJECT go together: which variables, and where they "
                "are stored."
            )
        safe("the run's name", self.title, NAME)

    @property
    def chips(self) -> int:
        """Chips per slice."""
        return math.prod(int(size) for size in self.tpu.split(":")[1].split("x"))

    @property
    def pods(self) -> int:
        """Pods per slice, or nodes with GPUs."""
        return max(self.chips // CHIPS, 1) if self.tpu else self.nodes

    @property
    def grace(self) -> int:
        """Seconds in which a pod must save and exit."""
        return self.leave or (SPOT_GRACE_S if self.spot else GRACE_S)

    def arguments(self) -> list[str]:
        """The container's command.

        Kubernetes expands $(NAME) there, and $$ to $: user input is escaped, ours is not.
        """
        command = dataclasses.replace(self, name=self.title).command(runs=RUNS)
        words = [word.replace("$", "$$") for word in command]
        if self.tpu:
            return [*words, "--coordinator", "auto"]
        if self.nodes == 1:
            return words
        first = f"{self.title}-node-0-0.{self.title}:{PORT}"
        return [
            *words,
            "--coordinator",
            first,
            "--processes",
            str(self.nodes),
            "--process",
            "$(JOB_COMPLETION_INDEX)",
        ]

    def container(self) -> dict[str, Any]:
        """The container of a pod."""
        limits = {"nvidia.com/gpu": self.gpus}
        if self.tpu:
            limits = {"google.com/tpu": min(self.chips, CHIPS)}
        variables: list[dict[str, Any]] = [
            {"name": each, "value": value} for each, value in self.variables.items()
        ]
        variables += [
            {"name": each, "valueFrom": {"secretKeyRef": {"name": self.secret, "key": each}}}
            for each in self.secrets
        ]
        return {
            "name": "jaxbig",
            "image": self.image,
            "command": self.arguments(),
            "env": variables,
            "resources": {"limits": limits},
            "volumeMounts": [
                {"name": name, "mountPath": place} for name, (place, _) in self.volumes().items()
            ],
        }

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the container."""
        return data_variables(DATA if self.data else "", RUNS)

    def volumes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name -> mount path and source of each volume."""
        claims = {"runs": (RUNS, self.claim)} | ({"data": (DATA, self.data)} if self.data else {})
        found = {
            name: (place, {"persistentVolumeClaim": {"claimName": claim}})
            for name, (place, claim) in claims.items()
        }
        # NCCL copies data between a node's GPUs through shared memory; the default is 64 MiB
        return found | (
            {"shm": ("/dev/shm", {"emptyDir": {"medium": "Memory"}})} if self.gpu else {}
        )

    def pod(self) -> dict[str, Any]:
        """The specification of a pod."""
        kind, _, topology = self.tpu.partition(":")
        where = {"cloud.google.com/gke-accelerator": self.gpu}
        if self.tpu:
            where = {
                "cloud.google.com/gke-tpu-accelerator": TPUS[kind],
                "cloud.google.com/gke-tpu-topology": topology,
            }
        spot = {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace,
            "nodeSelector": where | ({SPOT: "true"} if self.spot else {}),
            "tolerations": [spot] if self.spot else [],
            "containers": [self.container()],
            "volumes": [{"name": name, **source} for name, (_, source) in self.volumes().items()],
        }

    def manifest(self) -> dict[str, Any]:
        """The JobSet: one job per slice, one pod per machine."""

        def exits(code: int) -> dict[str, Any]:
            return {"onExitCodes": {"containerName": "jaxbig", "operator": "In", "values": [code]}}

        # The first rule that matches a pod counts. A pod that only followed another (PEER_LOST) is
        # replaced and decides nothing: the lost pod shows whether the job was preempted or failed.
        policy = [
            {
                "action": "FailJob",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            },
            {"action": "FailJob", **exits(75)},
            {"action": "Ignore", **exits(PEER_LOST)},
        ]
        again = {
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
        job = {
            "parallelism": self.pods,
            "completions": self.pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": policy},
            "template": {"spec": self.pod()},
        }
        one_slice_one_pool = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
        named = {"name": self.title, "namespace": self.namespace}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": named | ({"annotations": one_slice_one_pool} if self.tpu else {}),
            "spec": {
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [{"name": "preempted", **again}],
                },
                "replicatedJobs": [
                    {
                        "name": "slice" if self.tpu else "node",
                        "replicas": self.slices if self.tpu else 1,
                        "template": {"spec": job},
                    }
                ],
            },
        }

    def render(self) -> str:
        return to_yaml(self.manifest())

    def start(self) -> int:
        try:
            return subprocess.run(
                ["kubectl", "create", "-f", "-"], input=self.render(), text=True, check=False
            ).returncode
        except FileNotFoundError:
            raise Failed(
                "there is no kubectl here: install it, and give it your cluster's credentials."
            ) from None


if __name__ == "__main__":
    sys.exit(main(Gke, "jaxbig.launch.gke"))
