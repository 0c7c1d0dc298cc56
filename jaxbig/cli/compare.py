"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
from pathlib import Path

import tyro

from jaxbig.cli.command import Verb
from jaxbig.config.serialize import flat
from jaxbig.tools.compare_runs import compare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Verb):
    """What differs between two or more runs: config, versions, data, curves."""

    workdirs: tyro.conf.Positional[list[Path]]
    """Their folders; each is compared with the first."""

    def __call__(self) -> int:
        result = compare(self.workdirs)
        ends = [{**run, **dict(flat(run["metrics"])), "metrics": ""} for run in result["runs"]]
        kept = [
            key
            for key in ends[0]
            if key in ("workdir", "step", "state_sha256") or key.startswith("eval/")
        ]
        return self.emit(
            result,
            ("", [{key: run.get(key, "") for key in kept} for run in ends]),
            (f"\nagainst {self.workdirs[0]}", result["differences"] or [{"differences": "none"}]),
            ("\nhow far the curves are apart", result["curves"] or [{"shared metrics": "none"}]),
        )
