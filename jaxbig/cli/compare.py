"""`jaxbig compare`: shows what differs between runs."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxbig.cli.command import Command
from jaxbig.config.serialize import flat
from jaxbig.tools.compare_runs import compare

COLUMNS = ("workdir", "step", "digest")
DIGITS = 12
"""Characters of a digest that are printed; `--json` has it whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """What differs between two or more runs: config, versions, data, curves."""

    workdirs: tyro.conf.Positional[list[Path]]
    """Folders of the runs; each is compared with the first."""

    def __call__(self) -> int:
        result = compare(self.workdirs)
        ends = [{**run, **dict(flat(run["metrics"])), "metrics": ""} for run in result["runs"]]
        for run in ends:
            run["digest"] = (run["state_sha256"] or "")[:DIGITS]
        names = dict.fromkeys(key for run in ends for key in run if key.startswith("eval/"))
        columns = [*COLUMNS, *names]
        return self.emit(
            result,
            ("", [{key: run.get(key, "") for key in columns} for run in ends]),
            (f"\nagainst {self.workdirs[0]}", result["differences"] or [{"differences": "none"}]),
            ("\nwidest gaps of the curves", gap_rows(result["curves"])),
        )


def gap_rows(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gaps as they are printed; of equal curves there is none."""
    equal = {"widest_gap": "equal", "at_step": ""}
    rows = [gap if gap["widest_gap"] != 0 else {**gap, **equal} for gap in gaps]
    return rows or [{"shared metrics": "none"}]
