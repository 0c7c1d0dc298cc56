"""Plans of `jaxbig plan` as tables to print."""

from typing import Any

from jaxbig.cli.tables import Rows, Table, pairs
from jaxbig.cost.hardware import FRACTIONS, GiB
from jaxbig.distributed.mesh import format_mesh


def plan_tables(plan: dict[str, Any]) -> list[Table]:
    """A plan: memory, cost of a step, largest buffers, collectives."""
    source = "estimate, from the CPU's compiler" if plan["estimate"] else "the compiler's own"
    memory = [
        {"a chip": name.removesuffix("_bytes"), "GiB": f"{size / GiB:.3f}"}
        for name, size in plan["memory"].items()
    ]
    memory.append({"a chip": "fits", "GiB": "yes" if plan["fits"] else "no"})
    buffers = []
    for buffer in plan["buffers"]:
        rest = {name: value for name, value in buffer.items() if name != "bytes"}
        buffers.append({"MiB": f"{buffer['bytes'] / 2**20:.1f}", **rest})
    tables = [
        (f"memory ({source})", memory),
        ("", pairs("step", _step_facts(plan))),
        ("\nlargest buffers", buffers),
    ]
    if plan.get("time"):
        tables.append(("\ntime of a step, by the compiler's cycles", _time(plan)))
    if plan["collectives"]:
        sent = [{**row, "bytes": f"{row['bytes'] / 2**20:,.1f} MiB"} for row in plan["collectives"]]
        tables.append(("\ncollectives a step, on each chip", sent))
    return tables


def _step_facts(plan: dict[str, Any]) -> dict[str, str]:
    flops = f"{plan['flops_per_step'] / 1e12:,.4g}"
    model_flops = f"{plan['model_flops_per_step'] / 1e12:,.4g}"
    facts = {
        "parameters": f"{plan['parameters']:,}",
        "mesh": format_mesh(plan["mesh"]),
        "TFLOP a step": f"{flops}, {model_flops} without recomputation",
    }
    if plan["step_seconds"]:
        bounds = plan["bounds"]
        longest = max(bounds, key=bounds.get)
        each = ", ".join(f"{name} {seconds:.4g}" for name, seconds in bounds.items())
        if plan.get("time"):
            facts["seconds a step"] = f"{plan['step_seconds']:.4g}, by the compiler's cycles"
            facts["at least"] = f"{bounds[longest]:.4g}, bound by {longest} ({each})"
            facts["MFU"] = f"{plan['mfu']:.1%}"
        else:
            facts["seconds a step, at least"] = (
                f"{plan['step_seconds']:.4g}, bound by {longest} ({each})"
            )
            facts["MFU, at most"] = f"{plan['mfu']:.1%}"
    if plan["estimate"]:
        facts["of a GPU's memory JAX takes"] = f"{plan['memory_fraction']:g} ({FRACTIONS[0]})"
    facts["compiled in"] = f"{plan['compile_seconds']:.0f} s"
    return facts


def _time(plan: dict[str, Any]) -> Rows:
    """Seconds by part, and what communication adds."""
    found = plan["time"]
    rows = [
        *found["parts"].items(),
        ("communication, exposed", found["exposed"]),
        ("communication, overlapped", found["overlapped"]),
    ]
    rows_of = []
    for part, seconds in rows:
        share = f"{seconds / plan['step_seconds']:.1%}"
        if part == "communication, overlapped":
            share = ""  # no part of the sum
        rows_of.append({"part": part, "seconds": f"{seconds:.4g}", "of the step": share})
    return rows_of


def plan_differences(rows: list[dict[str, Any]]) -> Rows:
    """The rows of `differences`, as text."""

    def text(value: float | None, unit: str) -> str:
        if value is None:
            return ""
        if unit == "bytes":
            return f"{value / GiB:,.3f} GiB"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g} {unit}".strip()

    return [
        {
            "": row["what"],
            "before": text(row["before"], row["unit"]),
            "now": text(row["now"], row["unit"]),
            "now / before": _format(row["ratio"], ".3f"),
        }
        for row in rows
    ]


def plan_ranking(plans: list[dict[str, Any]]) -> Rows:
    """The plans of a search, one a row."""
    return [
        {
            "mesh": format_mesh(plan["mesh"]),
            "remat": plan["remat"],
            "batch": plan["batch"],
            "fits": "yes" if plan["fits"] else "no",
            "GiB a chip": f"{plan['memory']['peak_bytes'] / GiB:.2f}",
            "s a step": _format(plan["step_seconds"], ".4g"),
            "examples/s": _format(plan["seconds_per_example"], ",.1f", invert=True),
            "MFU, at most": _format(plan["mfu"], ".1%"),
        }
        for plan in plans
    ]


def _format(value: float | None, spec: str, invert: bool = False) -> str:
    if not value:
        return ""
    return format(1 / value if invert else value, spec)
