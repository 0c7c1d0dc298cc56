"""Compares runs: experiment, versions, data, devices, and the gaps of their curves."""

import re
from pathlib import Path
from typing import Any

from jaxbig.config.fingerprint import diff, without_added
from jaxbig.errors import Refused
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.run_description import read_run, read_summary

SECTIONS = (
    "experiment",
    "data_identity",
    "versions",
    "flags",
    "config",
    "devices",
    "mesh",
    "git_commit",
    "code",
)
NOT_CURVES = re.compile(r"step|split|data_wait|padding|mfu|.*_per_second(_.*)?")
"""Metrics of the machine, or of the few steps before a line, and not of the model."""
Curves = dict[str, dict[int, float]]


def compare(workdirs: list[Path]) -> dict[str, Any]:
    """Each run's end, and each run against the first: what differs, and the widest gap of each
    curve."""
    if len(workdirs) < 2:
        raise Refused(f"compare needs two or more folders and got {len(workdirs)}.")
    ends = []
    differences = []
    gaps = []
    first_run = {}
    first_curves = {}
    for workdir in workdirs:
        run = read_run(workdir)
        curves = read_curves(workdir)
        if run is None:
            raise Refused(
                f"{workdir} holds no run (no run.json): name folders that `jaxbig train` "
                f"has written."
            )
        run = without_added({name: run.get(name) for name in SECTIONS})
        end = {"step": None, "state_sha256": None, **read_summary(workdir)}
        ends.append(
            {
                "workdir": str(workdir),
                **{key: end.get(key, {}) for key in ("step", "state_sha256", "metrics")},
            }
        )
        if workdir is workdirs[0]:
            first_run = run
            first_curves = curves
            continue
        differences += [
            {"workdir": str(workdir), "differs": line} for line in differing(first_run, run)
        ]
        gaps += [{"workdir": str(workdir), **gap} for gap in widest_gaps(first_curves, curves)]
    return {"runs": ends, "differences": differences, "curves": gaps}


def differing(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs in two runs, a line each; their code, if both have noted it."""
    if None in (first["code"], other["code"]):
        other = {**other, "code": first["code"]}
    return diff(first, other)


def read_curves(workdir: Path) -> Curves:
    """metric -> step -> value, without metrics of the machine's speed."""
    curves: Curves = {}
    for line in read_metrics(workdir):
        for name in line:
            if line[name] is not None and not NOT_CURVES.fullmatch(name):
                curves.setdefault(f"{line['split']}/{name}", {})[line["step"]] = line[name]
    return curves


def widest_gaps(first: Curves, other: Curves) -> list[dict[str, Any]]:
    """For each metric of both: the number of shared steps, the widest gap, and its step."""
    gaps = []
    for name in sorted(first.keys() & other.keys()):
        steps = first[name].keys() & other[name].keys()
        if steps:
            gap, step = max((abs(first[name][s] - other[name][s]), s) for s in steps)
            gaps.append(
                {"metric": name, "shared_steps": len(steps), "widest_gap": gap, "at_step": step}
            )
    return gaps
