"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import DONE, FAILED, OfExperiment, rows
from jaxbig.distributed.mesh import format_mesh
from jaxbig.tools.check_sharding import check, use_cpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(OfExperiment):
    """Loss and every gradient of a step on the mesh, as so many devices of this CPU, against one; exit 1 where they are
    apart. No data is touched; what is large is shrunk."""

    tolerance: float | None = None
    """Of the loss, and of each parameter's gradient, relative; None: 1e-8 in float64, 1e-4 in float32."""

    def __call__(self) -> int:
        use_cpu(self.experiment.mesh)
        result = check(self.experiment, self.tolerance)
        furthest = sorted(result["errors"].items(), key=lambda item: -item[1])[:10]
        shown = {key: value for key, value in result.items() if key != "errors"}
        told = {
            **shown,
            "mesh": format_mesh(shown["mesh"]),
            "changed": "; ".join(shown["changed"]) or "nothing",
        }
        self.emit(
            shown,
            ("", rows("checked", told)),
            ("\nfurthest from one device", rows("gradient", dict(furthest))),
        )
        return DONE if result["ok"] else FAILED
