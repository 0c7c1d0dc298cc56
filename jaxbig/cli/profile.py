"""`jaxbig profile`: shows where the time of traced steps went."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.tables import Rows
from jaxbig.cost.hardware import GiB
from jaxbig.tools.read_profile import COMMUNICATION, COMPUTE, DATA, IDLE, read_profile

NAMES: dict[str, str] = {
    COMPUTE: "computation",
    COMMUNICATION: "communication, exposed",
    DATA: "waits for a batch",
    IDLE: "idle otherwise",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile(Command):
    """Where the time of the steps went that `train --profile` has traced, by part, module, line."""

    path: tyro.conf.Positional[Path]
    """The folder of a run, whose newest trace is read, or a trace (.xplane.pb)."""

    rows: int = 12
    """How many modules and source lines are shown; the rest is summed up. With --json, all are."""

    def __call__(self) -> int:
        result = read_profile(self.path)
        steps = result["steps"] or [1, 1]
        count = steps[1] - steps[0] + 1
        shown = Shown(result["seconds"], count, self.rows)
        parts = shown.table(
            "a step", [(NAMES[name], each) for name, each in result["parts"].items()]
        )
        parts.append(shown.row("a step", "all", result["seconds"]))
        operations = [each for each in result["operations"] if each["kind"] != IDLE]
        working = [each for each in operations if each["kind"] != DATA]
        title = f"steps {steps[0]} to {steps[1]}" if result["steps"] else "all that was traced"
        return self.emit(
            result,
            (f"{title}, the mean of {result['devices']} device(s)", parts),
            ("", facts(result)),
            ("\nby module", shown.top("module", working, module)),
            ("\nby source line", shown.top("source", working, lambda each: each["source"])),
        )


@dataclasses.dataclass(frozen=True)
class Shown:
    """Times as rows of a table: milliseconds a step, and the part of all time."""

    seconds: float
    steps: int
    limit: int

    def row(self, name: str, label: str, seconds: float) -> dict[str, Any]:
        part = seconds / self.seconds if self.seconds else 0.0
        return {name: label, "ms": f"{1e3 * seconds / self.steps:,.3f}", "of all": f"{part:.1%}"}

    def table(self, name: str, times: Iterable[tuple[str, float]]) -> Rows:
        return [self.row(name, label, seconds) for label, seconds in times]

    def top(
        self, name: str, operations: list[dict[str, Any]], label: Callable[[dict[str, Any]], str]
    ) -> Rows:
        """The sums of the operations with the same label, the longest first, the rest in one."""
        sums: dict[str, float] = collections.defaultdict(float)
        for each in operations:
            sums[label(each) or "(unknown)"] += each["seconds"]
        ranked = sorted(sums.items(), key=lambda item: -item[1])
        rows = self.table(name, ranked[: self.limit])
        rest = ranked[self.limit :]
        if rest:
            rows.append(self.row(name, f"{len(rest)} more", sum(each for _, each in rest)))
        return rows


def module(operation: dict[str, Any]) -> str:
    """An operation's module and phase, as they are shown."""
    phase = f" ({operation['phase']})" if operation["phase"] else ""
    return f"{operation['module'] or 'outside of modules'}{phase}"


def facts(result: dict[str, Any]) -> Rows:
    """What else is known of the steps."""
    rows = []
    hidden = result["hidden_communication_seconds"]
    exposed = result["parts"][COMMUNICATION]
    if hidden + exposed:
        under = f"{hidden / (hidden + exposed):.1%}"
        rows.append({"what": "communication under computation", "value": under})
    for name, what in (
        ("peak_bytes", "memory at the peak, as the device counted"),
        ("step_bytes", "memory of a step, as the compiler counted"),
    ):
        if result[name]:
            rows.append({"what": what, "value": f"{result[name] / GiB:.3f} GiB"})
    return [*rows, {"what": "trace", "value": result["trace"]}]
