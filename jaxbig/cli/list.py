"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import Verb
from jaxbig.config.discover import available, summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Verb):
    """Every experiment, its one-line summary."""

    def __call__(self) -> int:
        found = [
            {"experiment": name, "summary": summary(file)}
            for name, file in sorted(available().items())
        ]
        return self.emit({"experiments": found}, ("", found))
