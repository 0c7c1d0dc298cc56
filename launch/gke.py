"""A JobSet on Google Kubernetes Engine: TPU slices, or nodes with GPUs.

    python -m launch.gke c4_llama_7b --image IMAGE --claim runs --tpu v5p:4x4x8 --slices 2 > run.yaml
    python -m launch.gke c4_llama_1b --image IMAGE --claim runs --gpu nvidia-h100-80gb --gpus 8 --nodes 4 --submit

The cluster needs JobSet's controller, the image jaxbig, and the claim a volume that all pods may write. A run that was
preempted (exit 75, or its node taken away) begins again as often as it takes; one that fails, `--restarts` times.
"""

import dataclasses
import math
import subprocess
import sys
from typing import Any

from jaxbig.errors import Failed, Refused
from launch.common import NAME, CloudLauncher, Flag, at_least, main, safe, to_yaml

TPUS = {"v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
"""How GKE names the kinds (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)."""
CHIPS = 4
"""Of a machine, where a slice has so many."""
PORT = 1234
SPOT = "cloud.google.com/gke-spot"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke(CloudLauncher):
    """A JobSet on Google Kubernetes Engine."""

    image: str
    """Of a container with jaxbig in it."""
    claim: str
    """A PersistentVolumeClaim, where runs are kept."""
    tpu: str = ""
    """Kind and topology of a slice, as in v5p:4x4x8: v4, v5e, v5p or v6e."""
    slices: int = 1
    """How many such slices make the run."""
    gpu: str = ""
    """Kind of the GPUs, as GKE names it: nvidia-h100-80gb."""
    gpus: int = 8
    """Of each node."""
    nodes: int = 1
    """With GPUs."""
    spot: Flag = False
    """Machines that cost less and can be taken away."""
    restarts: int = 3
    """After failures; preemptions do not count."""
    leave: int = 120
    """Seconds between the request to stop and the end: a step, an evaluation and a save must fit in."""
    secret: str = ""
    """The Kubernetes Secret with the variables that --secrets names, each under its own name."""
    namespace: str = "default"

    def check(self) -> None:
        super().check()
        safe("--image", self.image)
        for option in ("claim", "namespace", *(["secret"] if self.secret else [])):
            safe(f"--{option}", getattr(self, option), r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
        for option in ("slices", "gpus", "nodes", "leave"):
            at_least(f"--{option}", getattr(self, option))
        at_least("--restarts", self.restarts, 0)
        if bool(self.tpu) == bool(self.gpu):
            raise Refused("give --tpu KIND:TOPOLOGY or --gpu KIND: which machines it shall run on.")
        if self.tpu:
            kind, _, topology = self.tpu.partition(":")
            if kind not in TPUS:
                raise Refused(f"--tpu {self.tpu!r}: its kind must be one of {', '.join(TPUS)}.")
            safe("--tpu", topology, r"[1-9]\d*(x[1-9]\d*){1,2}")
            if self.chips > CHIPS and self.chips % CHIPS:
                raise Refused(f"--tpu {self.tpu}: {self.chips} chips do not make whole machines of {CHIPS}.")
        else:
            safe("--gpu", self.gpu)
        if bool(self.secrets) != bool(self.secret):
            raise Refused("--secrets NAME and --secret OBJECT go together: which variables, and where they are kept.")
        safe("the run's name", self.title, NAME)

    @property
    def chips(self) -> int:
        """Of a slice."""
        return math.prod(int(size) for size in self.tpu.split(":")[1].split("x"))

    @property
    def pods(self) -> int:
        """Of a slice, or of the nodes with GPUs."""
        return max(self.chips // CHIPS, 1) if self.tpu else self.nodes

    def arguments(self) -> list[str]:
        """What the container runs. Kubernetes puts variables for $(NAME) there, and $ for $$: so ours alone are one."""
        kept = dataclasses.replace(self, name=self.title).command(runs="/runs")
        words = [word.replace("$", "$$") for word in kept]
        if self.tpu:
            return [*words, "--coordinator", "auto"]
        if self.nodes == 1:
            return words
        first = f"{self.title}-node-0-0.{self.title}:{PORT}"
        return [*words, "--coordinator", first, "--processes", str(self.nodes), "--process", "$(JOB_COMPLETION_INDEX)"]

    def container(self) -> dict[str, Any]:
        device, count = ("google.com/tpu", min(self.chips, CHIPS)) if self.tpu else ("nvidia.com/gpu", self.gpus)
        found = [
            {"name": each, "valueFrom": {"secretKeyRef": {"name": self.secret, "key": each}}} for each in self.secrets
        ]
        return {
            "name": "jaxbig",
            "image": self.image,
            "command": self.arguments(),
            "env": found,
            "resources": {"limits": {device: count}},
            "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
        }

    def pod(self) -> dict[str, Any]:
        kind, _, topology = self.tpu.partition(":")
        where = {"cloud.google.com/gke-accelerator": self.gpu}
        if self.tpu:
            where = {"cloud.google.com/gke-tpu-accelerator": TPUS[kind], "cloud.google.com/gke-tpu-topology": topology}
        spot = {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.leave,
            "nodeSelector": where | ({SPOT: "true"} if self.spot else {}),
            "tolerations": [spot] if self.spot else [],
            "containers": [self.container()],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}}],
        }

    def manifest(self) -> dict[str, Any]:
        """The JobSet: a job a slice, a pod a machine."""
        preempted = [
            {"action": "FailJob", "onExitCodes": {"containerName": "jaxbig", "operator": "In", "values": [75]}},
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
        again = {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
        job = {
            "parallelism": self.pods,
            "completions": self.pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": preempted},
            "template": {"spec": self.pod()},
        }
        one_slice_one_pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        named = {"name": self.title, "namespace": self.namespace}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": named | ({"annotations": one_slice_one_pool} if self.tpu else {}),
            "spec": {
                "failurePolicy": {"maxRestarts": self.restarts, "rules": [{"name": "preempted", **again}]},
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
            raise Failed("there is no kubectl here: install it, and give it your cluster's credentials.") from None


if __name__ == "__main__":
    sys.exit(main(Gke, "launch.gke"))
