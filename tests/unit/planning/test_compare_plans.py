"""`plan --against`: two plans side by side, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxbig.cli.plan_tables import plan_differences
from jaxbig.errors import Refused
from jaxbig.planning.compare_plans import differences, read_plan


def planned(seconds: float, sent: dict[str, int], **time: float) -> dict[str, Any]:
    return {
        "topology": "v5p:2x2x1",
        "parameters": 10,
        "memory": {"peak_bytes": int(seconds * 2**30), "argument_bytes": 2**30},
        "flops_per_step": 100,
        "step_seconds": seconds,
        "time": {"parts": time, "exposed": 0.25, "overlapped": 0.25},
        "collectives": [
            {"kind": kind, "axes": "fsdp", "bytes": size} for kind, size in sent.items()
        ],
    }


def test_two_plans_are_compared_number_by_number() -> None:
    old = planned(2.0, {"all-reduce": 400}, attention=1.0)
    new = planned(1.0, {"all-gather": 100}, attention=0.5, MLP=0.25)
    rows = {row["what"]: row for row in differences(old, new)}
    assert rows["step"]["ratio"] == rows["attention"]["ratio"] == 0.5
    assert rows["memory at the peak"]["ratio"] == 0.5 and rows["FLOPs"]["ratio"] == 1.0
    assert (rows["MLP"]["before"], rows["MLP"]["now"], rows["MLP"]["ratio"]) == (None, 0.25, None)
    assert rows["all-reduce over fsdp"]["now"] is None
    shown = {row[""]: row for row in plan_differences(list(rows.values()))}
    assert shown["step"]["now / before"] == "0.500" and shown["MLP"]["before"] == ""
    assert shown["memory at the peak"]["now"] == "1.000 GiB"


def test_a_plan_that_does_not_fit_has_no_time_to_compare() -> None:
    new = planned(1.0, {})
    rows = differences(planned(1.0, {}), new | {"time": None, "step_seconds": None})
    assert {row["what"]: row["ratio"] for row in rows}["step"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("{}", "has no 'topology'"), ("[", "plan.json"), ("[]", "plan.json")],
)
def test_a_file_that_is_no_plan_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Refused, match=said):
        read_plan(file)


def test_a_kept_plan_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(planned(1.0, {})))
    assert read_plan(file)["parameters"] == 10
