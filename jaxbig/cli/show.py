"""`jaxbig show`: shows an experiment and its parameters."""

import dataclasses

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.serialize import flat
from jaxbig.tools.describe import show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(ExperimentCommand):
    """The resolved experiment, its parameters and their sharding; no data is read."""

    def __call__(self) -> int:
        shown = show(self.experiment)
        devices = shown["devices"]
        where = f"{devices['count']} x {devices['kind']}, mesh {devices['mesh']}"
        parameters = f"{shown['parameters']:,} parameters"
        if "trained" in shown:
            parameters += f", of which {shown['trained']:,} are trained"
        return self.emit(
            {key: value for key, value in shown.items() if key != "table"},
            (f"{self.name}: {parameters}", shown["table"]),
            (f"\n{where}", pairs("bytes on each device", shown["bytes_per_device"])),
            ("", pairs("field", dict(flat(shown["experiment"])))),
        )
