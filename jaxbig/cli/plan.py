"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
import shlex

from jaxbig.cli.command import DONE, Flag, OfExperiment
from jaxbig.cost.hardware import parse_topology
from jaxbig.planning import planner
from jaxbig.planning.aot_compile import measure
from jaxbig.planning.search import ranking, search
from jaxbig.tracking.console import Screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(OfExperiment):
    """Memory, FLOPs, collectives and time on hardware that is not here; no data is touched."""

    topology: str = ""
    """Chips and how they lie: v4, v5e, v5p or v6e TPUs as in v5p:4x4x8; a100, h100 or h200 GPUs as in h100:64."""
    slices: int = 1
    """How many such TPU slices, joined by the data center's network."""
    timeout: float = 1800.0
    """Seconds that the compiler may take."""
    search: int | None = None
    """Plans so many meshes, remat policies and batches, its own the first, and ranks them by time an example."""
    here: Flag = False
    """Compile in this process, which ends where the compiler crashes; else in a child of it."""

    def __call__(self) -> int:
        topology = parse_topology(self.topology, self.slices)
        if self.here:
            return self.emit(measure(self.experiment, topology))
        command, screen = ["plan", self.name, *self.options], Screen(self.json)
        if self.search is not None:
            found = search(
                command, self.experiment, topology, self.timeout, self.search, screen.say
            )
            self.emit({"plans": found}, ("", ranking(found)))
            if not self.json and found[0]["fits"]:
                screen.say(
                    f"\nthe fastest: jaxbig {shlex.join(command)} {shlex.join(found[0]['options'])}"
                )
            return DONE
        result = planner.plan(command, self.experiment, topology, self.timeout, screen.say)
        self.emit(result, *planner.rows(result))
        proposal = result.get("proposal")
        if proposal and not self.json:
            screen.say(f"\nthis fits: jaxbig {shlex.join([*command, *proposal['options']])}")
            self.emit(proposal, *planner.rows(proposal))
        return DONE
