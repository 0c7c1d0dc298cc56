"""`jaxbig list`: lists the experiments."""

import dataclasses

from jaxbig.cli.command import Command
from jaxbig.config.experiment_files import available, summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """Every experiment and its one-line summary."""

    def __call__(self) -> int:
        experiments = [
            {"experiment": name, "summary": summary(file)}
            for name, file in sorted(available().items())
        ]
        return self.emit({"experiments": experiments}, ("", experiments))
