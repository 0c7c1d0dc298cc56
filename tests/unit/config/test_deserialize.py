"""An experiment from its JSON: the same one again, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest
from support.experiments import EXPERIMENTS, small

from jaxbig.config.deserialize import from_json, load_run, modules_of
from jaxbig.config.discover import load
from jaxbig.config.serialize import to_json
from jaxbig.data.audio import Sounds
from jaxbig.data.core.dataset import Records
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.text import TokenRows
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.errors import Refused

BASE = small("digits_convnet")


class ConvNet(nn.Module):
    """A model of the user's own, with the name of one of jaxbig's."""

    classes: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recordings(Records):
    """Records of the user's own, with a path."""

    folder: Path

    def open(self, split: str) -> list[Any]:
        return []


def saved(experiment: Any) -> Any:
    """The JSON of an experiment, as `run.json` holds it."""
    return json.loads(json.dumps(to_json(experiment)))


def with_value(path: str, value: Any) -> Any:
    """The JSON of `BASE` with one value changed, or removed where it is None."""
    described = saved(BASE)
    *folders, last = path.split(".")
    inner = described
    for name in folders:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return described


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_from_its_json_is_equal(name: str) -> None:
    experiment = load(name)
    rebuilt = from_json(saved(experiment))
    assert rebuilt == experiment
    assert repr(rebuilt) == repr(experiment)  # equal types of numbers too


def test_paths_and_nested_records_are_rebuilt() -> None:
    parts = (TextFiles(files=("a/*.txt",)), TextFiles(files=("b.txt",)))
    records = Mixture(parts=parts, weights=(1.0, 2.0))
    rows = TokenRows(batch=4, length=8, records=records, tokenizer=Bytes())
    sounds = Sounds(batch=4, classes=2, records=Recordings(folder=Path("a")))
    for data in (rows, sounds):
        experiment = dataclasses.replace(BASE, data=data)
        assert from_json(saved(experiment), own=[Recordings]) == experiment


def test_missing_field_has_its_default() -> None:
    assert from_json(with_value("keep_last", None)) == BASE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps", "many", "experiment.steps is 'many'"),
        ("steps", None, "incomplete.*'steps'"),
        ("stpes", 3, "experiment.stpes is a field"),
        ("guard.policy", "ignore", "experiment.guard.policy is 'ignore'"),
        ("model.type", "Mine", "experiment.model is a Mine"),
        ("model.parent", "x", "experiment.model.parent is a field"),
        ("model.type", "Digits", "experiment.model is a Digits, which it cannot be"),
        ("type", "Digits", "experiment is a Digits, which it cannot be"),
    ],
)
def test_json_that_is_no_experiment_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        from_json(with_value(path, value))


def write_run(folder: Path, run: dict[str, Any]) -> None:
    (folder / "run.json").write_text(json.dumps({**run, "data_identity": "x"}))


def test_own_class_is_never_taken_for_one_of_jaxbig(tmp_path: Path) -> None:
    experiment = dataclasses.replace(BASE, model=ConvNet(classes=7))
    write_run(tmp_path, {"experiment": saved(experiment), "modules": modules_of(experiment)})
    with pytest.raises(Refused, match=r"does not ship its ConvNet; .* FILE.py --workdir"):
        load_run(tmp_path)
    assert load_run(tmp_path, own=[ConvNet]) == experiment


def test_file_of_an_own_class_is_named_to_whom_gives_the_folder(tmp_path: Path) -> None:
    modules = {"MyMLP": "jaxbig_experiment_my_model", "SGD": "jaxbig.optim.optimizers"}
    write_run(tmp_path, {"experiment": saved(BASE), "modules": modules})
    with pytest.raises(Refused, match=rf"its MyMLP; .*: my_model.py --workdir {tmp_path}"):
        load_run(tmp_path)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"is not the folder of a run, which has a file run\.json"):
        load_run(tmp_path)
    write_run(tmp_path, {"experiment": saved(BASE)})
    assert load_run(tmp_path) == BASE
