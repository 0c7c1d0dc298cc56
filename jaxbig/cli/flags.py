"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
import shlex

import tyro

from jaxbig.cli.command import DONE, Verb, rows
from jaxbig.planning.xla_flags import flags
from jaxbig.tracking.console import Screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Verb):
    """Compiler flags for a chip, and what each is for, to export before a run; none is on by itself."""

    chip: tyro.conf.Positional[str]
    """v4, v5e, v5p, v6e, a100, h100 or h200."""

    def __call__(self) -> int:
        found = flags(self.chip)
        self.emit(
            found, ("not measured: compare with `jaxbig bench`", rows("flag", found["flags"]))
        )
        Screen(self.json).say(f"\nexport {found['variable']}={shlex.quote(found['value'])}")
        return DONE
