"""What a deterministic run sets before JAX starts, and what it refuses when it is too late."""

import os

import jax
import pytest

from jaxbig.errors import Refused
from jaxbig.system import determinism
from jaxbig.system.determinism import (
    FLAG,
    UNFUSED,
    check_threads,
    is_deterministic,
    set_deterministic,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setenv("NPROC", "3")
    monkeypatch.setattr(determinism, "started", lambda: False)
    monkeypatch.setattr(determinism, "is_x86", lambda: True)


@pytest.mark.parametrize(
    ("deterministic", "chunks", "flags", "threads"),
    [
        (False, 0, "--xla_dump_to=x", "3"),
        (True, 0, f"--xla_dump_to=x {FLAG}=true", "3"),
        (False, 8, f"--xla_dump_to=x {UNFUSED} {FLAG}=true", "8"),
    ],
)
def test_flag_and_threads_are_set_where_they_are_asked_for(
    deterministic: bool, chunks: int, flags: str, threads: str
) -> None:
    set_deterministic(deterministic, chunks)
    assert os.environ["XLA_FLAGS"] == flags
    assert os.environ["NPROC"] == threads
    assert is_deterministic() == (deterministic or chunks > 0)


@pytest.mark.parametrize("value", ["true", "false"])
def test_flag_that_the_user_has_set_stays(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}={value}")
    set_deterministic(True, 0)
    assert os.environ["XLA_FLAGS"] == f"{FLAG}={value}"
    assert is_deterministic() == (value == "true")


def test_instructions_are_limited_on_x86_unless_the_user_has_limited_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    set_deterministic(False, 8)
    assert UNFUSED not in os.environ["XLA_FLAGS"]
    monkeypatch.setattr(determinism, "is_x86", lambda: False)
    monkeypatch.delenv("XLA_FLAGS")
    set_deterministic(False, 8)
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=true"


@pytest.mark.parametrize(
    ("flags", "threads", "refused"), [("", "8", True), (UNFUSED, "3", True), (UNFUSED, "8", False)]
)
def test_a_cpu_that_has_started_without_threads_or_flag_is_refused(
    flags: str, threads: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(determinism, "started", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", threads)
    check_threads(0)
    if not refused:
        return check_threads(8)
    with pytest.raises(Refused, match=f"NPROC=8 and XLA_FLAGS={UNFUSED} before Python"):
        check_threads(8)
    return None


@pytest.mark.parametrize(("platform", "refused"), [("gpu", True), ("cpu", False), ("tpu", False)])
def test_flag_that_comes_too_late_for_a_gpu_is_refused(
    platform: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(determinism, "started", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    if not refused:
        return set_deterministic(True, 0)
    with pytest.raises(Refused, match=f"XLA_FLAGS={FLAG}=true before Python starts"):
        set_deterministic(True, 0)
    monkeypatch.setenv("XLA_FLAGS", FLAG)  # it was there in time
    return set_deterministic(True, 0)


def test_a_backend_that_has_started_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    jax.devices()
    assert determinism.started()
