"""Traces of a run's steps: they change nothing, hold what they should, and their times add up."""

import gzip
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from unit.train.test_trainer import tiny

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused
from jaxbig.tools.read_profile import (
    COMMUNICATION,
    COMPUTE,
    DATA,
    IDLE,
    Operation,
    Span,
    divide,
    kind_of,
    module_and_phase,
    read_profile,
)
from jaxbig.tracking.console import Screen
from jaxbig.train import step_profiler
from jaxbig.train.step_profiler import traced_steps
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")


def short(**changes: Any) -> Experiment:
    return tiny(**{"steps": 4, "evaluate_every": 4, "checkpoint_every": 2, **changes})


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("traced")
    return folder, fit(short(), folder, Screen(), profile=range(2, 4), dump=True)


def test_a_traced_run_ends_with_the_digest_of_one_that_is_not(
    traced: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, summary = traced
    assert summary["state_sha256"] == fit(short(), tmp_path, Screen())["state_sha256"]
    assert not (tmp_path / "profile").exists() and not (tmp_path / "dump").exists()


def test_the_parts_and_the_operations_add_up_to_the_time_of_the_steps(
    traced: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = traced
    result = read_profile(folder)
    assert result["steps"] == [2, 3] and result["devices"] == 8
    assert sum(result["parts"].values()) == pytest.approx(result["seconds"], rel=1e-6)
    for kind, seconds in result["parts"].items():
        mine = sum(each["seconds"] for each in result["operations"] if each["kind"] == kind)
        assert mine == pytest.approx(seconds, rel=1e-6)
    assert min(result["parts"][COMPUTE], result["parts"][COMMUNICATION]) > 0
    assert result["step_bytes"] > 0
    named = [(each["module"], each["phase"]) for each in result["operations"]]
    assert any(module.startswith("ConvNet/") and phase == "forward" for module, phase in named)
    assert any(module.startswith("ConvNet/") and phase == "backward" for module, phase in named)
    assert any("jaxbig/models/" in each["source"] for each in result["operations"])


def test_a_traced_run_keeps_a_trace_for_perfetto_and_the_text_of_the_step(
    traced: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = traced
    (file,) = (folder / "profile" / "plugins" / "profile" / "steps_2_to_3").glob("*.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert {each["args"]["step_num"] for each in events if each.get("name") == "train"} == {
        "2",
        "3",
    }
    assert not (folder / "profile" / ".partial").exists()
    assert (folder / "dump" / "train_step.hlo.txt").read_text().startswith("HloModule")
    assert "lambda" in (folder / "dump" / "train_step.jaxpr.txt").read_text()


def test_a_trace_that_an_early_stop_cuts_has_the_steps_that_were_made(tmp_path: Path) -> None:
    class Stopping(Screen):
        def train(self, step: int, values: dict[str, float]) -> None:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)

    summary = fit(short(log_every=1), tmp_path, Stopping(), profile=range(2, 5))
    assert summary["interrupted"]
    assert read_profile(tmp_path)["steps"] == [2, summary["step"]]
    assert not (tmp_path / "profile" / ".partial").exists()


def test_an_error_leaves_no_trace(tmp_path: Path) -> None:
    class Breaking(Screen):
        def train(self, step: int, values: dict[str, float]) -> None:
            if step == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(short(log_every=1), tmp_path, Breaking(), profile=range(1, 5))
    with pytest.raises(Refused, match="has no trace"):
        read_profile(tmp_path)


def test_an_error_of_the_profiler_is_none_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("only one at a time")

    monkeypatch.setattr(step_profiler.jax.profiler, "start_trace", fail)
    assert fit(short(), tmp_path, Screen(), profile=range(2, 4))["step"] == 4
    assert caplog.text.count("no trace: RuntimeError: only one at a time") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "must be START:STOP"),
        ("-1:5", "must be START:STOP"),
        ("5:5", "has no step"),
        ("0:5", "has no step"),
        ("5:12", "ends at step 11, and the run at step 10: give an earlier STOP, at most 11"),
    ],
)
def test_steps_that_are_none_of_the_run_are_refused(text: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        traced_steps(text, 10)


def test_steps_to_trace_are_without_the_last_number() -> None:
    assert traced_steps("5:11", 10) == range(5, 11) and not traced_steps("", 10)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vm.xplane.pb"
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(Refused, match="is no trace"):
        read_profile(file)
    with pytest.raises(Refused, match="does not exist"):
        read_profile(tmp_path / "absent")


def test_time_is_computation_first_then_communication_then_data_and_shared_evenly() -> None:
    first = Operation(COMPUTE, "first")
    second = Operation(COMPUTE, "second")
    reduce = Operation(COMMUNICATION)
    read = Operation(DATA)
    spans = [
        Span(-5, 4, first),
        Span(2, 6, second),
        Span(5, 8, reduce),
        Span(7, 9, read),
        Span(20, 30, first),
    ]
    shares, hidden = divide(spans, 0, 10)
    assert shares == {first: 3, second: 3, reduce: 2, read: 1, Operation(IDLE): 1}
    assert hidden == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jit(f)/jvp(Net)/block_0/attention/dot", ("Net/block_0/attention", "forward")),
        ("jit(f)/transpose(jvp(Net))/head/while/body/closed_call/mul", ("Net/head", "backward")),
        ("jit(f)/(jvp(A)/x/add:transpose(jvp(B))/y/add)", ("several modules", "backward")),
        ("jit(f)/add", ("", "")),
    ],
)
def test_an_operations_name_gives_module_and_phase(name: str, expected: tuple[str, str]) -> None:
    assert module_and_phase(name) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("all-reduce-start.3", COMMUNICATION),
        ("ncclDevKernel_AllGather_RING_LL", COMMUNICATION),
        ("MemcpyH2D", DATA),
        ("loop_fusion.2", COMPUTE),
        ("reduce.4", COMPUTE),
    ],
)
def test_an_operations_name_gives_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind
