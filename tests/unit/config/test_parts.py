"""What an experiment can be made of: every public class with a summary, and its fields."""

import json

import pytest

from jaxbig import data, evaluators, models, objectives, optim
from jaxbig.cli.main import run
from jaxbig.config.experiment import Experiment
from jaxbig.config.parts import ROOMS, describe_part, format_type, list_parts
from jaxbig.errors import Refused

BASES = {
    *("Augmentation", "Classifier", "Data", "Examples", "Metric", "Mixing", "Model", "Objective"),
    *("Optimizer", "Records", "Schedule", "Sum", "Sums", "Tokenizer", "Translator"),
}
"""Public classes that parts derive from, and what objectives return."""


def test_every_public_class_is_in_a_room_and_has_a_summary() -> None:
    found = list_parts()
    names = {row["class"] for row in found}
    public = {name for package in (models, objectives, data, optim) for name in package.__all__}
    assert public - names == BASES and len(names) == len(found)
    assert {row["room"] for row in found} == {*ROOMS}
    assert {*evaluators.__all__} - names == {"lm_eval_model"}
    assert all(20 < len(row["summary"]) < 300 for row in found)
    rooms = {row["class"]: row["room"] for row in found}
    assert rooms["Decoder"] == "models" and rooms["Conv"] == "layers"
    assert rooms["ImageFolder"] == "records" and rooms["Images"] == "data"


def test_every_field_of_every_part_has_a_type_and_a_help_text() -> None:
    for row in list_parts():
        for field in describe_part(row["class"])["fields"]:
            assert field["type"] and field["help"], (row["class"], field)
            json.dumps(field)


def test_part_is_described_by_its_fields() -> None:
    part = describe_part("adamw")
    fields = {field["field"]: field for field in part["fields"]}
    assert (part["class"], part["module"]) == ("AdamW", "jaxbig.optim.optimizers")
    assert fields["learning_rate"]["default"] == "required"
    assert fields["weight_decay"] == {
        "field": "weight_decay",
        "type": "float, 0 or more",
        "default": 0.01,
        "help": "Each step takes `rate * weight_decay * w` off each chosen parameter w.",
    }
    kind = {field["field"]: field["type"] for field in describe_part("Pool")["fields"]}["kind"]
    assert kind == "max | mean"


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int | None, "int | None"),
        (tuple[str, ...], "tuple[str]"),
        (dict[str, float], "dict[str, float]"),
        (Experiment, "Experiment"),
    ],
)
def test_type_is_formatted_as_it_is_written(annotation: object, expected: str) -> None:
    assert format_type(annotation) == expected


@pytest.mark.parametrize(("name", "near"), [("AdmaW", "AdamW"), ("qqqq", "`jaxbig parts` lists")])
def test_unknown_part_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(Refused, match=f"no part {name!r}: .*{near}"):
        describe_part(name)


def test_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["parts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == list_parts()
    assert run(["parts", "SGD", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "SGD"


def test_base_class_is_described_with_the_methods_to_write() -> None:
    for name in BASES - {"Sums"}:
        assert describe_part(name)["class"] == name
    [method] = describe_part("Objective")["methods"]
    assert method["method"] == "__call__(self, forward, batch, key, train)"
    assert "batch: arrays" in method["help"]
    assert describe_part("AdamW")["methods"] == []
