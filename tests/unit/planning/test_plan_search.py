"""A search over plans: what is tried and in which order, what is left out, how plans are ranked."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.compiling import HASTY
from support.experiments import small

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import parse_topology
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Failed, Refused
from jaxbig.planning import search
from jaxbig.planning.search import Setting, meshes, ranked, settings

POD = parse_topology("h100:8")


def planned(seconds: float | None, fits: bool, batch: int = 1, peak: int = 1) -> dict[str, Any]:
    return {
        "step_seconds": seconds,
        "fits": fits,
        "batch": batch,
        "memory": {"peak_bytes": peak},
        "mfu": None,
        "mesh": {"data": 8},
    }


def test_what_fits_is_ranked_first_and_then_the_least_seconds_an_example() -> None:
    slow = planned(4.0, True, 2)
    fast = planned(6.0, True, 4)
    large = planned(1.0, False, 8)
    none = planned(None, False)
    found = ranked([none, large, slow, fast])
    assert found[0]["seconds_per_example"] == 1.5 and found[1]["seconds_per_example"] == 2.0
    assert [plan["fits"] for plan in found] == [True, True, False, False]


def test_meshes_share_the_devices_out_and_keep_what_sequence_and_expert_take() -> None:
    own = Mesh(data=1, fsdp=4, sequence=2).sizes(8)
    assert list(meshes(own, 8)) == [
        (1, 4, 1, 2, 1, 1),
        (2, 2, 1, 2, 1, 1),
        (4, 1, 1, 2, 1, 1),
        (1, 2, 2, 2, 1, 1),
        (2, 1, 2, 2, 1, 1),
        (1, 1, 4, 2, 1, 1),
    ]


def test_the_own_setting_is_tried_first_and_then_what_differs_in_one_thing() -> None:
    experiment = small("pytext_llama", mesh=Mesh(data=-1))
    found = settings(experiment, 8)
    assert found[0] == Setting((8, 1, 1, 1, 1, 1), 0, 16)
    differing = [
        (each.mesh != found[0].mesh) + (each.remat > 0) + (each.batch != 16) for each in found
    ]
    assert (
        differing == sorted(differing) and differing[:2] == [0, 1] and len(set(found)) == len(found)
    )


def test_what_takes_at_least_the_memory_of_another_is_known() -> None:
    one = Setting((8, 1, 1, 1, 1, 1), 1, 16)
    assert dataclasses.replace(one, batch=32).needs(one) and dataclasses.replace(
        one, remat=0
    ).needs(one)
    assert not dataclasses.replace(one, batch=8).needs(one) and not dataclasses.replace(
        one, remat=2
    ).needs(one)
    assert not dataclasses.replace(one, mesh=(4, 2, 1, 1, 1, 1)).needs(one)


@pytest.fixture
def experiment() -> Experiment:
    return small("pytext_llama", mesh=Mesh(data=-1))


def test_settings_that_cannot_fit_are_left_out_and_failures_are_reported(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def compile_in_child(command: list[str], *_: Any) -> dict[str, Any]:
        tried.append(command)
        if "--mesh.tensor=8" in command:
            raise Failed("does not divide")
        return planned(1.0, "--mesh.data=8" not in command)

    monkeypatch.setattr(search, "compile_in_child", compile_in_child)
    said: list[str] = []
    found = search.search(["plan"], experiment, POD, 60, 500, said.append)
    assert (
        sum("--mesh.data=8" in command and "--model.remat=none" in command for command in tried)
        == 1
    )
    assert any("does not divide" in line for line in said) and all(
        plan["options"] for plan in found
    )
    assert found[0]["fits"] and len(found) < len(settings(experiment, 8))


def test_a_search_that_is_stopped_gives_what_was_found(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([planned(1.0, True), planned(2.0, True)])

    def compile_in_child(*_: Any) -> dict[str, Any]:
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "compile_in_child", compile_in_child)
    assert len(search.search(["plan"], experiment, POD, 60, 9, print)) == 2
    with pytest.raises(Failed, match="no setting"):
        search.search(["plan"], experiment, POD, 60, 9, print)
    monkeypatch.setattr(search, "compile_in_child", lambda *_: planned(1.0, True))
    assert len(search.search(["plan"], experiment, POD, 60, 3, print)) == 3
    with pytest.raises(Refused, match="--search 0"):
        search.search(["plan"], experiment, POD, 60, 0, print)


@pytest.mark.slow
def test_a_search_compiles_for_real(jaxbig: Callable[..., Any]) -> None:
    tiny = [
        "pytext_llama",
        "--model.depth",
        1,
        "--model.width",
        64,
        "--model.heads",
        8,
        "--data.length",
        64,
    ]
    done = jaxbig("plan", *tiny, "--topology", "h100:8", "--search", 3, "--json", **HASTY)
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    assert len(plans) == 3 and all(
        plan["fits"] and plan["memory"]["peak_bytes"] > 0 for plan in plans
    )
    assert [plan["seconds_per_example"] for plan in plans] == sorted(
        plan["seconds_per_example"] for plan in plans
    )
    assert len({tuple(plan["options"]) for plan in plans}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_plan_that_is_asked_to_stop_leaves_no_child(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "jaxbig", "plan", "digits_convnet", "--topology", "h100:64"]
    parent = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not (found := children.read_text().split()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    parent.communicate(timeout=60)
    assert parent.returncode == 75
    left = Path(f"/proc/{found[0]}/stat")
    until = time.monotonic() + 20
    # a zombie (Z) is dead, and its parent has not asked for its status
    while left.exists() and left.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)
