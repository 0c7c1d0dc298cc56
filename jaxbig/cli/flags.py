"""`jaxbig flags`: prints compiler flags for a chip."""

import dataclasses
import shlex

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.tables import pairs
from jaxbig.planning.xla_flags import flags
from jaxbig.system.exit_codes import DONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Command):
    """Compiler flags for a chip and what each is for, to export before a run; all off by
    default."""

    chip: tyro.conf.Positional[str]
    """v4, v5e, v5p, v6e, v7x, a100, h100, h200, b200, gb200, gb300 or mi355x."""

    def __call__(self) -> int:
        found = flags(self.chip)
        title = "not measured: compare with `jaxbig bench`"
        self.emit(found, (title, pairs("flag", found["flags"])))
        self.screen().say(f"\nexport {found['variable']}={shlex.quote(found['value'])}")
        return DONE
