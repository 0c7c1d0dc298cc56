"""`jaxbig plan`: plans a run on hardware that is not attached."""

import dataclasses
import shlex
from pathlib import Path

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.plan_tables import plan_differences, plan_ranking, plan_tables
from jaxbig.config.options import Flag
from jaxbig.cost.hardware import Topology, parse_topology
from jaxbig.errors import Refused
from jaxbig.planning.aot_compile import measure
from jaxbig.planning.compare_plans import differences, read_plan
from jaxbig.planning.planner import plan
from jaxbig.planning.search import search
from jaxbig.planning.xla_flags import set_flags
from jaxbig.system.exit_codes import DONE
from jaxbig.tracking.console import Screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(ExperimentCommand):
    """Memory, FLOPs, collectives and time on hardware that is not attached; no data is read."""

    topology: str = ""
    """TPUs and their layout, as in v5p:4x4x8 (v4, v5e, v5p, v6e, v7x), or GPUs, as in h100:64
    (a100, h100, h200, b200, gb200, gb300, mi355x)."""
    slices: int = 1
    """Number of such TPU slices, connected by the data center's network."""
    timeout: float = 1800.0
    """Seconds that the compiler may take."""
    search: int | None = None
    """Plan this many meshes, remat policies and batches, and rank them by time per example."""
    flags: Flag = False
    """Compile with the flags that `jaxbig flags` prints for a TPU."""
    against: Path | None = None
    """Compare with the plan in this file, which --json printed."""
    here: Flag = False
    """Compile in this process, which dies if the compiler crashes; else in a child process."""

    def __call__(self) -> int:
        topology = parse_topology(self.topology, self.slices)
        before = None
        if self.against is not None:
            if self.search is not None:
                raise Refused("--against compares one plan: leave out --search.")
            before = read_plan(self.against)
        if self.flags:
            set_flags(topology)
        if self.here:
            return self.emit(measure(self.experiment, topology))
        command = ["plan", self.name, *self.options]
        screen = self.screen()
        if self.search is not None:
            return self.rank(command, topology, self.search, screen)
        result = plan(command, self.experiment, topology, self.timeout, screen.say)
        tables = plan_tables(result)
        if before is not None:
            rows = differences(before, result)
            result["against"] = rows
            tables.append((f"\nagainst {self.against}", plan_differences(rows)))
        self.emit(result, *tables)
        proposal = result.get("proposal")
        if proposal and not self.json:
            screen.say(f"\nthis fits: jaxbig {shlex.join([*command, *proposal['options']])}")
            self.emit(proposal, *plan_tables(proposal))
        return DONE

    def rank(self, command: list[str], topology: Topology, limit: int, screen: Screen) -> int:
        """Plans up to `limit` settings and prints them, the fastest first."""
        found = search(command, self.experiment, topology, self.timeout, limit, screen.say)
        self.emit({"plans": found}, ("", plan_ranking(found)))
        if not self.json and found[0]["fits"]:
            fastest = shlex.join([*command, *found[0]["options"]])
            screen.say(f"\nthe fastest: jaxbig {fastest}")
        return DONE
