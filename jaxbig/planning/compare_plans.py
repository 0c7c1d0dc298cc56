"""Compares a plan with an older one, which `jaxbig plan ... --json > FILE` kept."""

from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.planning.planner import Plan
from jaxbig.system.json_files import read_json

NEEDED = ("topology", "memory", "flops_per_step", "parameters", "collectives", "step_seconds")


def read_plan(file: Path) -> Plan:
    """A plan as `jaxbig plan --json` prints it.

    Raises:
      Refused: the file is missing, or is not such a plan.
    """
    found = read_json(file)
    if found is None:
        raise Refused(f"--against {file}: there is no such file; write one with --json > {file}.")
    missing = [name for name in NEEDED if name not in found]
    if missing or not isinstance(found["memory"], dict):
        raise Refused(
            f"--against {file} is no plan, as it has no {(missing or ['memory'])[0]!r}: write one "
            f"with `jaxbig plan ... --json`."
        )
    return found


def differences(before: Plan, now: Plan) -> list[dict[str, Any]]:
    """What two plans have, a row each: `what`, its `unit`, `before`, `now`, and their `ratio`.

    A number that one of them lacks is None, and so is its ratio.
    """
    old = _numbers(before)
    new = _numbers(now)
    rows = []
    for what, unit in [*new, *(key for key in old if key not in new)]:
        pair = old.get((what, unit)), new.get((what, unit))
        ratio = None
        if None not in pair and pair[0]:
            ratio = pair[1] / pair[0]
        rows.append({"what": what, "unit": unit, "before": pair[0], "now": pair[1], "ratio": ratio})
    return rows


def _numbers(plan: Plan) -> dict[tuple[str, str], Any]:
    """The numbers of a plan by what they are and their unit."""
    memory = plan["memory"]
    found: dict[tuple[str, str], Any] = {
        ("memory at the peak", "bytes"): memory.get("peak_bytes"),
        ("memory of arguments", "bytes"): memory.get("argument_bytes"),
        ("parameters", ""): plan["parameters"],
        ("FLOPs", ""): plan["flops_per_step"],
        ("step", "s"): plan["step_seconds"],
    }
    time: dict[str, Any] = plan.get("time") or {}
    found |= {(part, "s"): seconds for part, seconds in time.get("parts", {}).items()}
    if time:
        found["communication, exposed", "s"] = time["exposed"]
        found["communication, overlapped", "s"] = time["overlapped"]
    for row in plan["collectives"] or []:
        found[f"{row['kind']} over {row['axes']}", "bytes"] = row["bytes"]
    return found
