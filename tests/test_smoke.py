"""`train --smoke` of what ships, and of what is not here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EMBEDDED, EXPERIMENTS

QUICK = ("mnist_convnet",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EXPERIMENTS if n not in EMBEDDED]
)
def test_every_full_size_experiment_takes_real_steps_without_its_data(
    name: str, jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    here = {"TFDS_DATA_DIR": str(tmp_path / "data"), "JAXBIG_CACHE": str(tmp_path / "cache")}
    done = jaxbig("train", name, "--smoke", "--json", **here)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["step"] == 2 and summary["metrics"]["eval/loss"] > 0
    assert "made-up records" in done.stderr
    run = tmp_path / "runs" / f"{name}-smoke"
    kept = json.loads((run / "run.json").read_text())["experiment"]["data"].get("tokenizer", {})
    assert (run / "tokenizer.json").exists() == ("BytePairs" in str(kept))


@pytest.mark.slow
def test_embedded_data_is_its_own_and_a_smoke_test_replaces_nothing_but_its_like(
    jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    for _ in range(2):
        done = jaxbig("train", "digits_convnet", "--smoke")
        assert done.returncode == 0 and "made-up" not in done.stdout + done.stderr, done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    done = jaxbig("train", "digits_convnet", "--smoke", "--workdir", "mine")
    assert done.returncode == 2 and "mine holds something else" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
