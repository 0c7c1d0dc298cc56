"""A change in the file of a user's own class is noted, compared, and said at a resume."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flax import nnx
from support.experiments import small

from jaxbig.config.discover import load
from jaxbig.config.own_code import code_of
from jaxbig.program.program import make_program
from jaxbig.system.json_files import read_json, write_json
from jaxbig.tools.compare_runs import compare
from jaxbig.train.resume import write_run

MODEL = """
import flax.linen as nn
import jaxbig as jb

class Base(jb.models.Model):
    pass

class MyMLP(Base):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1))))

def config():
    return jb.load("digits_convnet").replace(model=MyMLP())
"""
Start = Callable[[str], dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a run, or resumes it, with a text of `my_model.py`; gives its `run.json`."""

    def write(text: str) -> dict[str, Any]:
        file = tmp_path / "my_model.py"
        file.write_text(text)
        program = make_program(load(str(file)))
        run = read_json(tmp_path / "run.json")
        write_run(program, tmp_path, run=run, fixed={"data_identity": "x"})
        return json.loads((tmp_path / "run.json").read_text())

    return write


def test_changed_file_of_an_own_class_is_compared_and_said_at_a_resume(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(MODEL)
    assert list(first["code"]) == ["Base", "MyMLP"]
    same = start(MODEL)
    assert same["code"] == first["code"] and not caplog.records
    changed = start(MODEL.replace("relu", "tanh"))
    assert changed["fingerprint"] == first["fingerprint"]
    [warned] = [each for each in caplog.records if each.levelno == logging.WARNING]
    line = f"code.MyMLP: {first['code']['MyMLP']} -> {changed['code']['MyMLP']}"
    assert line.startswith("code.MyMLP: my_model.py ") and line in warned.getMessage()
    for name, run in (("a", first), ("b", changed)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", run)
    found = compare([tmp_path / "a", tmp_path / "b"])["differences"]
    assert line in [row["differs"] for row in found]


def test_run_that_noted_no_code_is_resumed_and_compared_without_a_word(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = start(MODEL)
    del old["code"]
    write_json(tmp_path / "run.json", old)
    new = start(MODEL)
    assert new["code"] and not [each for each in caplog.records if "code" in each.getMessage()]
    for name, run in (("a", old), ("b", new)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", run)
    found = compare([tmp_path / "a", tmp_path / "b"])["differences"]
    assert not [row for row in found if "code" in row["differs"]]


class Net(nnx.Module):
    """An NNX module."""


def test_code_of_an_nnx_module_is_that_of_its_class() -> None:
    experiment = small("digits_convnet", model=nnx.bridge.ToLinen(Net))
    assert list(code_of(experiment)) == ["Net"]
    assert code_of(experiment)["Net"].startswith("test_own_code.py ")


def test_experiment_of_jaxbig_has_no_own_code() -> None:
    assert code_of(small("digits_convnet")) == {}
