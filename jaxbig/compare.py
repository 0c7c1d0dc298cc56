"""What differs between runs: experiment, versions, data, devices, and how far their curves are apart."""

from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.experiment import diff
from jaxbig.tracking.metrics import read_json, read_metrics
from jaxbig.workdir import read_run

SECTIONS = ("experiment", "data_identity", "versions", "devices", "mesh", "git_commit")


def compare(workdirs: list[Path]) -> dict[str, Any]:
    """Each run's end, and each against the first: what differs, and the widest gap of each curve."""
    runs = []
    for workdir in workdirs:
        run = read_run(workdir)
        if run is None:
            raise Refused(
                f"{workdir} holds no run (no run.json): name folders that `jaxbig train` has written."
            )
        runs.append(run)
    curves = [_curves(workdir) for workdir in workdirs]
    first = {name: runs[0].get(name) for name in SECTIONS}
    ends = []
    for workdir in workdirs:
        summary = read_json(workdir / "summary.json") or {}
        ends.append(
            {
                "workdir": str(workdir),
                "step": summary.get("step"),
                "state_sha256": summary.get("state_sha256"),
                "metrics": summary.get("metrics", {}),
            }
        )
    return {
        "runs": ends,
        "differences": [
            {"workdir": str(workdir), "lines": diff(first, {name: run.get(name) for name in SECTIONS})}
            for workdir, run in zip(workdirs[1:], runs[1:], strict=True)
        ],
        "curves": [
            {"workdir": str(workdir), **gap}
            for workdir, curve in zip(workdirs[1:], curves[1:], strict=True)
            for gap in _gaps(curves[0], curve)
        ],
    }


def _curves(workdir: Path) -> dict[str, dict[int, float]]:
    """metric -> step -> value, of the metrics that do not depend on the machine's speed."""
    curves: dict[str, dict[int, float]] = {}
    for line in read_metrics(workdir):
        for name, value in line.items():
            if name not in ("step", "split", "steps_per_second", "examples_per_second", "data_wait"):
                curves.setdefault(f"{line['split']}/{name}", {})[line["step"]] = value
    return curves


def _gaps(first: dict[str, dict[int, float]], other: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """For each metric that both have: at how many shared steps, the widest gap, and the step where it is."""
    gaps = []
    for name in first:
        steps = [
            s for s in first[name] if other.get(name, {}).get(s) is not None and first[name][s] is not None
        ]
        if steps:
            gap, step = max((abs(first[name][s] - other[name][s]), s) for s in steps)
            gaps.append({"metric": name, "shared steps": len(steps), "widest gap": gap, "at step": step})
    return gaps
