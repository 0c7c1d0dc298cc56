"""The rivals of `benchmarks/peers` make the same steps as our models."""

import importlib
import json
from typing import Any

import pytest
from support.experiments import ROOT

pytest.importorskip("torch")
CASES = ("gpt", "convnet", "resnet18", "lstm", "vit", "bert", "moe")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module compare.py, whose folder is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    return importlib.import_module("compare")


def found(peers: Any, case: str, rival: str) -> dict[str, Any]:
    return peers.compare(case, rival, peers.CASES[case](**peers.SMALL[case]), repeats=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rival"),
    [
        *((case, "flax") for case in ("gpt", "convnet", "vit")),
        *((case, "torch") for case in ("gpt", "convnet", "lstm")),
    ],
)
def test_rival_makes_the_same_steps(peers: Any, case: str, rival: str) -> None:
    result = found(peers, case, rival)
    assert result["agree"] and result["their_parameters"] == result["parameters"]
    assert max(result["apart"]) < 1e-4
    first, *_, last = result["losses"]
    assert last[0] < first[0]
    assert min(*result["ratio"], result["processor_ratio"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lstm", "moe"])
def test_compiled_rival_makes_the_same_steps(peers: Any, case: str) -> None:
    result = found(peers, case, "torch.compile")
    assert result["agree"] and max(result["apart"]) < 1e-4


@pytest.mark.slow
def test_rival_with_another_learning_rate_does_not_agree(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("flax_step"), "RATE", 3e-3)
    result = found(peers, "convnet", "flax")
    assert not result["agree"] and result["apart"][0] < 1e-4 < result["apart"][1]


@pytest.mark.slow
def test_command_prints_every_case_and_the_machine(
    peers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "compare.py lstm --against flax torch --repeats 2 --small"
    monkeypatch.setattr("sys.argv", line.split())
    assert peers.main() == 0
    table = capsys.readouterr().out
    assert "theirs / ours" in table and table.count("lstm") == 2 and "torch" in table
    monkeypatch.setattr("sys.argv", [*line.split(), "--json"])
    assert peers.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["against"] for each in result["cases"]] == ["flax", "torch"]
    assert {"jax", "flax", "torch", "device", "load before"} <= result["machine"].keys()
