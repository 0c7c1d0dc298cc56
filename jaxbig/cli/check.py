"""`jaxbig check`: compares gradients on the experiment's mesh with those of one device."""

import dataclasses

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.distributed.mesh import format_mesh
from jaxbig.system.exit_codes import DONE, FAILED
from jaxbig.tools.check_sharding import check, use_cpu

SHOWN = 10
"""Parameters listed, those with the largest errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(ExperimentCommand):
    """Compares loss and gradients of a step on the mesh, on devices of this CPU, with one device.

    Exits with 1 if they differ. No data is read; large experiments are shrunk.
    """

    tolerance: float | None = None
    """Relative tolerance of the loss and of each gradient; None: 1e-8 in float64, 1e-4 in
    float32."""

    def __call__(self) -> int:
        use_cpu(self.experiment.mesh)
        result = check(self.experiment, self.tolerance)
        largest = sorted(result["errors"].items(), key=lambda item: -item[1])[:SHOWN]
        summary = {key: value for key, value in result.items() if key != "errors"}
        changed = "; ".join(summary["changed"]) or "nothing"
        printed = {**summary, "mesh": format_mesh(summary["mesh"]), "changed": changed}
        self.emit(
            summary,
            ("", pairs("checked", printed)),
            ("\nlargest errors", pairs("gradient", dict(largest))),
        )
        return DONE if result["ok"] else FAILED
