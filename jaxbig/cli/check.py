"""`jaxbig check`: what changes what, and gradients on the experiment's mesh and on one device."""

import dataclasses

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.distributed.mesh import format_mesh
from jaxbig.system.exit_codes import DONE, FAILED
from jaxbig.tools.check_causes import check_all
from jaxbig.tools.check_sharding import use_cpu

SHOWN = 10
"""Parameters listed, those with the largest errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(ExperimentCommand):
    """Finds leaks, dead parameters and wrong means; compares a mesh's gradients with one device.

    Asks whether gradients, terms of the loss, tokens, padding, rows and batches change what they
    must and nothing else. Then compares loss and gradients on the mesh, on devices of this CPU.
    Exits with 1 if one is wrong. No data is read; large experiments are shrunk.
    """

    tolerance: float | None = None
    """Relative tolerance of the loss and of each gradient; None: 1e-8 in float64, 1e-4 in
    float32."""

    def __call__(self) -> int:
        use_cpu(self.experiment.mesh)
        result = check_all(self.experiment, self.tolerance)
        summary = {key: value for key, value in result.items() if key != "errors"}
        answers = [
            {
                "question": each["question"],
                "asked of": each["of"],
                "found": f"{'wrong: ' if each['ok'] is False else ''}{each['found']}",
            }
            for each in result["causes"]
        ]
        printed = {key: value for key, value in summary.items() if key != "causes"}
        largest = sorted(result.get("errors", {}).items(), key=lambda item: -item[1])[:SHOWN]
        if result["mesh"] is None:
            printed["mesh"] = "one device, nothing to compare: give an axis more, as --mesh.data 8"
        else:
            printed["mesh"] = format_mesh(summary["mesh"])
            printed["changed"] = "; ".join(summary["changed"]) or "nothing"
        self.emit(
            summary,
            ("", answers),
            ("\non the mesh and on one device", pairs("checked", printed)),
            *([("\nlargest errors", pairs("gradient", dict(largest)))] if largest else []),
        )
        return DONE if result["ok"] else FAILED
