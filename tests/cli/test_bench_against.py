"""`jaxbig bench --against`, which runs the comparison of a checkout."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.experiments import ROOT

from jaxbig.cli import bench
from jaxbig.cli.main import run
from jaxbig.errors import Refused


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ("bench --against flax", "--against flax --repeats 15"),
        (
            "bench gpt vit --against flax torch.compile --repeats 3 --small --json",
            "gpt vit --against flax torch.compile --repeats 3 --small --json",
        ),
    ],
)
def test_comparison_gets_the_options(
    monkeypatch: pytest.MonkeyPatch, line: str, passed: str
) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(bench.subprocess, "run", record)
    assert run(line.split()) == 1
    file = str(ROOT / "benchmarks" / "peers" / "compare.py")
    assert commands == [[sys.executable, file, *passed.split()]]


def test_installed_package_says_that_it_needs_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COMPARE", Path("elsewhere/peers/compare.py"))
    with pytest.raises(Refused, match="checkout of jaxbig, in elsewhere/peers"):
        run(["bench", "gpt", "--against", "flax"])


def test_unknown_rival_is_refused() -> None:
    with pytest.raises(Refused, match="keras"):
        run(["bench", "gpt", "--against", "keras"])
