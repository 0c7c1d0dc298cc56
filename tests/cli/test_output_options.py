"""What --quiet and --verbose print, and what they leave."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxbig.cli.main import run
from jaxbig.errors import Refused

pytestmark = pytest.mark.usefixtures("shared_programs")
FEW = ["--steps=4", "--log-every=1", "--evaluate-every=4", "--checkpoint-every=4"]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """What `jaxbig train` prints with these options, on both streams; logs are as before then."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("jaxbig", "jax")]
    before = [(log.handlers, log.level, log.propagate) for log in loggers]

    def carry_out(*options: str) -> Any:
        capsys.readouterr()
        assert run(["train", "diabetes_mlp", *FEW, *options]) == 0
        return capsys.readouterr()

    yield carry_out
    for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
        log.handlers = handlers
        log.setLevel(level)
        log.propagate = propagate


def test_quiet_run_prints_nothing_but_json_if_asked(said: Any) -> None:
    first = said("--quiet")
    assert (first.out, first.err) == ("", "")
    second = said("--quiet", "--json")
    assert second.out.startswith("{\n") and second.err == ""


def test_quiet_run_still_warns(said: Any) -> None:
    said("--quiet")
    file = Path("runs/diabetes_mlp/metrics.jsonl")
    file.write_text("damaged\n" + file.read_text())
    again = said("--quiet")
    assert again.out == "" and "line 1 cannot be read" in " ".join(again.err.split())


def test_verbose_run_prints_every_logged_step_and_times(said: Any) -> None:
    plain = said("--workdir=a").out
    verbose = said("--workdir=b", "--verbose").out
    assert [f"step {step}/4" in verbose for step in range(1, 5)] == [True] * 4
    assert "step 4/4" not in plain
    assert "INFO" in plain and "] INFO" in verbose and "] INFO" not in plain


def test_quiet_and_verbose_together_are_refused() -> None:
    for command in (["list"], ["show", "digits_convnet"]):
        with pytest.raises(Refused, match="--quiet and --verbose contradict"):
            run([*command, "--quiet", "--verbose"])
