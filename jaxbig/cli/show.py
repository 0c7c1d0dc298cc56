"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import OfExperiment, rows
from jaxbig.config.serialize import flat
from jaxbig.tools.describe import show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(OfExperiment):
    """The resolved experiment, its parameters and where they are put; no data is touched."""

    def __call__(self) -> int:
        shown = show(self.experiment)
        where = f"{shown['devices']['count']} x {shown['devices']['kind']}, mesh {shown['devices']['mesh']}"
        return self.emit(
            {key: value for key, value in shown.items() if key != "table"},
            (f"{self.name}: {shown['parameters']:,} parameters", shown["table"]),
            (f"\n{where}", rows("bytes on each device", shown["bytes_per_device"])),
            ("", rows("field", dict(flat(shown["experiment"])))),
        )
