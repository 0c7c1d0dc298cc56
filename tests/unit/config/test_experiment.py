"""Finding an experiment, its JSON, and what makes it the same one or another."""

import dataclasses
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest
from support.experiments import EXPERIMENTS, ROOT, SHIPPED

from jaxbig.config.callback import Callback
from jaxbig.config.discover import load
from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.config.experiment_files import available, summary
from jaxbig.config.fingerprint import FREE, diff, fingerprint, identity
from jaxbig.config.guard import Guard
from jaxbig.config.serialize import to_json
from jaxbig.data.audio import Sounds
from jaxbig.data.builtin.digits import Digits
from jaxbig.data.builtin.pytext import PyText
from jaxbig.data.images import Images
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tabular import Columns
from jaxbig.data.transforms.augment import (
    CentralCrop,
    ColorJitter,
    CutMix,
    Either,
    Erasing,
    Flip,
    Mixup,
    Normalize,
    RandomCrop,
    ResizedCrop,
)
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.data.transforms.randaugment import RandAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.evaluators.k_nearest import KNearest
from jaxbig.models.convnet import Conv, ConvNet, Dense
from jaxbig.models.language_model import Decoder
from jaxbig.models.rnn import RNN
from jaxbig.objectives.class_scores import AUC
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.masked_token import MaskedToken
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optax_optimizer import Optax
from jaxbig.optim.optimizers import SGD, AdamW
from jaxbig.optim.schedules import Constant, WarmupCosine, WarmupLinear
from jaxbig.train.resume import differences

BASE = Experiment(
    model=ConvNet((Conv(4), Dense(8)), classes=10),
    objective=Classification(classes=10),
    data=Digits(batch=16),
    optimizer=AdamW(learning_rate=WarmupCosine(peak=1e-3, warmup=5)),
    steps=10,
    evaluate_every=5,
    checkpoint_every=5,
)
OWN = """'''A variant of the conv net.

More words.
'''
import dataclasses
from jaxbig.experiments import digits_convnet

def config():
    return dataclasses.replace(digits_convnet.config(), seed=12)
"""
OWN_MODEL = """
from __future__ import annotations
import dataclasses
import flax.linen as nn
from jaxbig.experiments import digits_convnet

class Mine(nn.Module):
    width: int = 3

def config():
    return dataclasses.replace(digits_convnet.config(), model=Mine(4))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what is imported from it is forgotten afterwards.

    Another `experiments` that was imported before is forgotten meanwhile.
    """
    monkeypatch.chdir(tmp_path)
    for name in list(sys.modules):
        if name.split(".")[0] == "experiments":
            monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments)
    return str(refused.value)


# -- loading


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_name_a_path_and_a_module_are_one_experiment(name: str, here: Path) -> None:
    by_name = to_json(load(name))
    assert (
        by_name
        == to_json(load(str(ROOT / "experiments" / f"{name}.py")))
        == to_json(load(f"jaxbig.experiments.{name}"))
    )


@pytest.mark.parametrize(
    "name", ["own.py", "./own.py", "experiments/wide.py", "wide", "package.own"]
)
def test_an_own_file_is_found(name: str, here: Path) -> None:
    for file in ("own.py", "experiments/wide.py", "package/own.py"):
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).write_text(OWN)
    assert load(name).seed == 12


def test_an_own_file_may_import_what_is_beside_it(here: Path) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "parent_of_mine.py").write_text(OWN)
    (here / "runs" / "mine.py").write_text("from parent_of_mine import config")
    path = list(sys.path)
    assert load("runs/mine.py").seed == 12
    assert sys.path == path


@pytest.mark.parametrize("package", [True, False], ids=["package", "folder"])
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("import base", "mine"),
        ("import base", "experiments/mine.py"),
        ("from experiments import base", "mine"),
        ("from experiments import base", "experiments/mine.py"),
        ("from experiments import base", "experiments.mine"),
    ],
)
def test_own_experiments_may_import_one_another(
    how: str, name: str, package: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # jaxbig is installed: the checkout, in which `experiments` is a package too, is not on the path
    installed = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", installed)
    (here / "experiments").mkdir()
    if package:
        (here / "experiments" / "__init__.py").touch()
    (here / "experiments" / "base.py").write_text(OWN)
    (here / "experiments" / "mine.py").write_text(f"{how}\nconfig = base.config")
    path = list(sys.path)
    assert load(name).seed == 12
    assert sys.path == path


@pytest.mark.parametrize("name", ["mine", "experiments/mine.py", "experiments.mine"])
def test_own_package_of_experiments_may_import_by_relative_names(name: str, here: Path) -> None:
    (here / "experiments" / "parts").mkdir(parents=True)
    for folder in ("experiments", "experiments/parts"):
        (here / folder / "__init__.py").touch()
    (here / "experiments" / "base.py").write_text(OWN)
    (here / "experiments" / "parts" / "part.py").write_text("from ..base import config")
    (here / "experiments" / "mine.py").write_text("from .parts.part import config")
    assert load(name).seed == 12
    assert load("experiments/parts/part.py").seed == 12


def test_own_package_in_another_folder_may_import_its_modules(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "there" / "own_package").mkdir(parents=True)
    (here / "there" / "own_package" / "__init__.py").touch()
    (here / "there" / "own_package" / "base.py").write_text(OWN)
    (here / "there" / "own_package" / "mine.py").write_text("from own_package.base import config")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert load("../there/own_package/mine.py").seed == 12
    assert load(str(here / "there" / "own_package" / "mine.py")).seed == 12


def test_own_package_with_the_name_of_a_loaded_module_is_loaded_by_its_file_alone(
    here: Path,
) -> None:
    (here / "json").mkdir()
    (here / "json" / "__init__.py").touch()
    (here / "json" / "mine.py").write_text(OWN_MODEL)
    model = load("json/mine.py").model
    assert sys.modules[type(model).__module__].__file__ == str(here / "json" / "mine.py")
    assert importlib.import_module(type(model).__module__) is sys.modules[type(model).__module__]
    assert "." not in type(model).__module__


def test_modules_of_the_current_folder_come_after_those_of_libraries(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "mine.py").write_text(f"import colorsys, beside\n{OWN}")
    (here / "colorsys.py").write_text("raise ValueError('not the one of the standard library')")
    (here / "beside.py").touch()
    sys.modules.pop("colorsys", None)
    assert load("sub/mine.py").seed == 12


@pytest.mark.parametrize("own", [True, False], ids=["beside own ones", "alone"])
def test_old_name_of_bundled_experiments_is_refused_with_the_new_one(
    own: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", installed)
    if own:
        (here / "experiments").mkdir()
        (here / "experiments" / "__init__.py").touch()
    (here / "mine.py").write_text("from experiments import digits_convnet")
    assert "import what jaxbig ships from jaxbig.experiments" in refusal(load, "mine.py")


def test_an_own_file_may_hold_an_own_model(here: Path) -> None:
    (here / "own.py").write_text(OWN_MODEL)
    assert to_json(load("own.py"))["model"] == {"type": "Mine", "width": 4}


def test_an_own_experiment_goes_before_one_that_ships(here: Path) -> None:
    (here / "experiments").mkdir()
    (here / "experiments" / "digits_rnn.py").write_text(OWN)
    assert load("digits_rnn").seed == 12
    assert available()["digits_rnn"] == here / "experiments" / "digits_rnn.py"
    assert set(SHIPPED) <= available().keys() and "__init__" not in available()


def test_a_file_that_changed_is_read_again(here: Path) -> None:
    file = here / "own.py"
    file.write_text(OWN)
    assert load("own.py").seed == 12
    file.write_text(OWN.replace("seed=12", "seed=34"))
    assert load("own.py").seed == 34


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit_convnet", "digits_convnet"),
        ("digits-rnn", "digits_rnn"),
        ("pytext_transfomer", "pytext_transformer"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str, here: Path) -> None:
    assert refusal(load, name).startswith(
        f"no experiment named {name!r}: the nearest are {nearest}"
    )


def test_a_file_that_is_no_experiment_is_named(here: Path) -> None:
    (here / "train.log").write_text("")
    assert refusal(load, "train.log").startswith("train.log is a file, but neither NAME.py nor")


def test_a_name_like_no_other_is_refused_with_where_to_look(here: Path) -> None:
    assert "`jaxbig list`" in refusal(load, "xyzzy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["own.py", "no function config()"]),
        ("config = 3", ["own.py", "no function config()"]),
        ("def config(): return {'steps': 3}", ["own.py", "returned dict"]),
        ("def config(): pass", ["own.py", "returned NoneType"]),
        ("import os\n\ndef config(:\n    pass", ["own.py", "line 3"]),
        ("def config():\nreturn 1", ["own.py", "line 2", "indent"]),
    ],
)
@pytest.mark.parametrize("name", ["own.py", "package.own"])
def test_a_file_that_is_no_experiment_is_refused_with_what_is_wrong(
    name: str, text: str, words: list[str], here: Path
) -> None:
    (here / "package").mkdir()
    for file in (here / "own.py", here / "package" / "own.py"):
        file.write_text(text)
    said = refusal(load, name)
    assert all(word in said for word in words) and "\n" not in said


def test_a_syntax_error_in_an_imported_file_is_reported_of_that_file(here: Path) -> None:
    (here / "broken_parent.py").write_text("x = 1\nx = = 2\n")
    (here / "own.py").write_text("from broken_parent import config")
    assert all(word in refusal(load, "own.py") for word in ("broken_parent.py", "line 2"))


@pytest.mark.parametrize(
    "name",
    [
        "missing.py",
        "no/such/folder/own.py",
        "nosuchpackage.own",
        "json.nothing",
        "./own",
        "../own",
        ".own",
        "a..b",
    ],
)
def test_what_is_not_there_is_refused_by_name(name: str, here: Path) -> None:
    assert name in refusal(load, name)


@pytest.mark.parametrize("name", ["own.py", "package.own"])
def test_a_missing_library_is_reported_as_python_reports_it(name: str, here: Path) -> None:
    """It is the file's own fault, with a line to look at; not that the experiment is unknown."""
    (here / "package").mkdir()
    for file in (here / "own.py", here / "package" / "own.py"):
        file.write_text("import a_library_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_nobody_has"):
        load(name)


# -- the summary


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_summary(name: str) -> None:
    assert 20 < len(summary(available()[name])) < 120


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"'''First line.\n\nMore.\n'''\nraise SystemExit(3)", "First line."),
        (b"raise SystemExit(3)", ""),
        (b"", ""),
        (b"'''Fine.'''\nx = = 2", "cannot be read: line 2"),
        ("'''Größer.'''".encode(), "Größer."),
        (b"'''caf\xe9'''", "cannot be read"),
        (b"'''Zero.'''\0", "cannot be read"),
    ],
    ids=["docstring", "none", "empty", "syntax", "utf-8", "latin-1", "zero byte"],
)
def test_a_summary_is_read_without_running_the_file(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_bytes(text)
    assert summary(tmp_path / "own.py").startswith(said)


# -- JSON


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_json_and_nothing_of_flax_is_in_it(name: str) -> None:
    found = to_json(load(name))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not {"parent", "name"} & keys_of(found["model"])
    assert found.keys() == {"type", *(field.name for field in dataclasses.fields(Experiment))}


def test_json_of_an_experiment_has_all_its_numbers() -> None:
    found = to_json(BASE)
    assert found["model"] == {
        "type": "ConvNet",
        "layers": [
            {"type": "Conv", "channels": 4, "kernel": 3, "stride": 1, "padding": "same"},
            {"type": "Dense", "width": 8},
        ],
        "classes": 10,
        "dtype": "float32",
    }
    assert found["optimizer"]["learning_rate"] == {
        "type": "WarmupCosine",
        "peak": 1e-3,
        "warmup": 5,
        "end": 0.0,
    }
    sizes = {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1, "expert": 1, "stage": 1}
    assert found["mesh"] == {"type": "Mesh", **sizes, "rules": "standard", "overrides": []}
    assert to_json({"folder": Path("a/b"), 3: (None, True)}) == {"folder": "a/b", "3": [None, True]}


@pytest.mark.parametrize(
    "value", [nn.relu, object(), {1, 2}, b"bytes", 1j, Experiment], ids=range(6)
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    said = refusal(to_json, {"field": [value]})
    assert type(value).__name__ in said


# -- the same or another


def changed(**fields: Any) -> Experiment:
    return dataclasses.replace(BASE, **fields)


def print_of(experiment: Experiment, data_identity: str = "digits sha256:1") -> str:
    return fingerprint(identity(to_json(experiment), data_identity))


RATE = WarmupCosine(peak=1e-3, warmup=5)
OTHER = {
    "seed": changed(seed=1),
    "chunks": changed(reproducible=8),
    "a run to start from": changed(initialize_from=InitializeFrom(run="runs/other")),
    "batch": changed(data=Digits(batch=32)),
    "model": changed(model=RNN(width=4, classes=10)),
    "a field of a layer": changed(model=ConvNet((Conv(4, kernel=5), Dense(8)), classes=10)),
    "order of layers": changed(model=ConvNet((Dense(8), Conv(4)), classes=10)),
    "objective": changed(objective=NextToken(vocab=10)),
    "a field of the objective": changed(objective=Classification(classes=11)),
    "optimizer": changed(optimizer=SGD(learning_rate=WarmupCosine(peak=1e-3, warmup=5))),
    "decay": changed(
        optimizer=AdamW(learning_rate=WarmupCosine(peak=1e-3, warmup=5), weight_decay=0.02)
    ),
    "rate": changed(optimizer=AdamW(learning_rate=WarmupCosine(peak=2e-3, warmup=5))),
    "clipping": changed(optimizer=dataclasses.replace(BASE.optimizer, clip_value=1.0)),
    "an optimizer of optax": changed(optimizer=Optax(name="lion", learning_rate=RATE)),
    "another one": changed(optimizer=Optax(name="lamb", learning_rate=RATE)),
    "another argument of it": changed(
        optimizer=Optax(name="lamb", learning_rate=RATE, arguments={"b1": 0.8})
    ),
    "schedule": changed(optimizer=AdamW(learning_rate=WarmupLinear(peak=1e-3, warmup=5))),
}
SAME = {
    "mesh": changed(mesh=Mesh(fsdp=2)),
    "steps": changed(steps=99),
    "accumulate": changed(accumulate=2),
    "deterministic": changed(deterministic=True),
    "offload": changed(offload=True),
    "log_every": changed(log_every=99),
    "evaluate_every": changed(evaluate_every=99),
    "evaluate_batches": changed(evaluate_batches=3),
    "metrics": changed(metrics=(AUC(),)),
    "evaluators": changed(evaluators=(Every(5, KNearest()),)),
    "patience": changed(patience=3),
    "guard": changed(guard=Guard(policy="skip")),
    "callbacks": changed(callbacks=(Callback(),)),
    "checkpoint_every": changed(checkpoint_every=99),
    "keep_last": changed(keep_last=99),
    "keep_best": changed(keep_best=99),
    "keep_every": changed(keep_every=99),
    "keep_hours": changed(keep_hours=9.0),
    "keep_gb": changed(keep_gb=9.0),
    "reader_threads": changed(reader_threads=99),
    "workers": changed(workers=99),
    "read_ahead": changed(read_ahead=99),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_fingerprint_changes_with_what_a_run_computes(what: str) -> None:
    assert print_of(OTHER[what]) != print_of(BASE)


def test_no_two_of_these_have_one_fingerprint() -> None:
    prints = [print_of(each) for each in (BASE, *OTHER.values())] + [
        print_of(BASE, "digits sha256:2")
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("what", SAME)
def test_a_fingerprint_does_not_change_with_where_and_how_long(what: str) -> None:
    assert print_of(SAME[what]) == print_of(BASE)
    assert diff(to_json(BASE), to_json(SAME[what]))


def test_how_many_records_may_be_left_out_is_no_part_of_a_fingerprint() -> None:
    before, now = (
        changed(data=dataclasses.replace(IMAGES, skip_bad_records=most)) for most in (0, 5)
    )
    assert print_of(before) == print_of(now)
    assert (
        differences(
            {"experiment": to_json(before), "data_identity": "x"}, identity(to_json(now), "x")
        )
        == []
    )


def test_a_field_that_came_later_counts_only_where_it_changes_something() -> None:
    data = Images(batch=16, classes=2, size=8, records=ImageFolder(folder="x"))
    experiment = dataclasses.replace(BASE, data=data)
    now = to_json(experiment)
    before = to_json(experiment)
    del before["optimizer"]["clip_value"]
    del before["data"]["records"]["test_share"]
    assert identity(before, "x") == identity(now, "x")
    assert differences({"experiment": before, "data_identity": "x"}, identity(now, "x")) == []


def test_an_evaluation_takes_the_run_of_a_model_without_its_later_fields() -> None:
    model = to_json(Decoder(vocab=8, depth=1, width=8, heads=1))
    before = {name: value for name, value in model.items() if name != "qk_norm"}
    for run in (before, model):
        described = {"experiment": {**to_json(BASE), "model": run}, "data_identity": "x"}
        assert differences(described, {"model": model}) == []
        lines = differences(described, {"model": {**model, "qk_norm": True}})
        assert len(lines) == 1 and lines[0].startswith("model.qk_norm")


def test_every_field_is_known_to_count_or_not() -> None:
    fields = {field.name for field in dataclasses.fields(Experiment)}
    fixed = {
        "model",
        "objective",
        "data",
        "optimizer",
        "precision",
        "initialize_from",
        "seed",
        "reproducible",
        "lora",
        "ema",
    }
    assert fields == {*FREE, *fixed}
    assert set(SAME) == set(FREE)


def test_a_fingerprint_is_a_sha256_of_sorted_json() -> None:
    text = '{"b": [1, 2.5], "data_identity": "x", "seed": 0}'
    assert (
        fingerprint({"seed": 0, "b": [1, 2.5], "data_identity": "x"})
        == hashlib.sha256(text.encode()).hexdigest()[:16]
    )
    assert print_of(BASE) == print_of(dataclasses.replace(BASE))


# -- differences


def test_a_difference_is_a_line_with_its_path() -> None:
    optimizer = AdamW(learning_rate=WarmupCosine(peak=2e-3, warmup=5), clip_norm=1.0)
    model = ConvNet((Conv(6), Dense(8)), classes=10)
    assert diff(to_json(BASE), to_json(changed(seed=1, optimizer=optimizer, model=model))) == [
        "model.layers.0.channels: 4 -> 6",
        "optimizer.learning_rate.peak: 0.001 -> 0.002",
        "optimizer.clip_norm: null -> 1.0",
        "seed: 0 -> 1",
    ]


def test_no_difference_is_no_line() -> None:
    assert diff(to_json(BASE), json.loads(json.dumps(to_json(BASE)))) == []


def test_another_type_is_shown_with_its_fields() -> None:
    lines = diff(to_json(BASE.optimizer), to_json(SGD(learning_rate=Constant(1e-3))), "optimizer")
    assert {
        "optimizer.type: AdamW -> SGD",
        "optimizer.momentum: null -> 0.9",
        "optimizer.b1: 0.9 -> null",
    } <= set(lines)


def test_a_long_difference_is_cut() -> None:
    deeper = ConvNet((*[Conv(4)] * 9, Dense(8)), classes=10)
    (line,) = diff(to_json(BASE), to_json(changed(model=deeper)))
    assert line.startswith("model.layers: [") and len(line) < 250
    before = f"{'x' * 90}sha256:0123{'y' * 90}"
    now = f"{'x' * 90}sha256:4567{'y' * 90}"
    start = f"{'x' * 60}...{'x' * 3}"
    end = f"{'y' * 16}..."
    assert diff(before, now, "a") == [f"a: {start}sha256:0123{end} -> {start}sha256:4567{end}"]
    assert diff({"a": "x" * 99}, {"a": "y"}) == [f"a: {'x' * 99} -> y"]


# -- numbers that cannot be right


CONV_NET = {
    "model.layers.0.channels 0": Conv(0),
    "model.layers.0.kernel 0": Conv(2, kernel=0),
    "model.layers.0.stride 0": Conv(2, stride=0),
    "model.layers.0.width -4": Dense(-4),
}
RATE = Constant(0.1)
BAD = {
    "steps 0": changed(steps=0),
    "guard.stuck-factor 2": changed(guard=Guard(stuck_factor=2)),
    "log-every 0": changed(log_every=0),
    "evaluate-every -5": changed(evaluate_every=-5),
    "checkpoint-every 0": changed(checkpoint_every=0),
    "keep-last 0": changed(keep_last=0),
    "keep-best -1": changed(keep_best=-1),
    "keep-every 15": changed(keep_every=15, checkpoint_every=10),
    "keep-hours -1": changed(keep_hours=-1),
    "keep-gb -0.5": changed(keep_gb=-0.5, keep_every=10),
    "reader-threads -1": changed(reader_threads=-1),
    "workers -1": changed(workers=-1),
    "read-ahead 0": changed(read_ahead=0),
    "seed -1": changed(seed=-1),
    "seed 4294967296": changed(seed=2**32),
    "data.batch 0": changed(data=Digits(batch=0)),
    "data.length 0": changed(data=PyText(batch=8, length=0)),
    "objective.classes 0": changed(objective=Classification(classes=0)),
    "objective.rate 0": changed(objective=MaskedToken(vocab=5, mask_token=4, rate=0)),
    "model.heads 0": changed(model=Decoder(vocab=5, heads=0)),
    "model.depth 0": changed(model=Decoder(vocab=5, depth=0)),
    "model.dropout 1.5": changed(model=Decoder(vocab=5, dropout=1.5)),
    "model.width 0": changed(model=RNN(width=0, classes=3)),
    "model.layers 0": changed(model=RNN(width=4, classes=3, layers=0)),
    **{option: changed(model=ConvNet((layer,), classes=3)) for option, layer in CONV_NET.items()},
    "optimizer.learning-rate.peak -0.1": changed(optimizer=SGD(learning_rate=Constant(-0.1))),
    "optimizer.learning-rate.peak nan": changed(optimizer=SGD(learning_rate=Constant(math.nan))),
    "optimizer.learning-rate.warmup -3": changed(
        optimizer=SGD(learning_rate=WarmupLinear(0.1, warmup=-3))
    ),
    "optimizer.momentum 1.0": changed(optimizer=SGD(learning_rate=RATE, momentum=1.0)),
    "optimizer.clip-norm -1.0": changed(optimizer=SGD(learning_rate=RATE, clip_norm=-1.0)),
    "optimizer.l1 -0.1": changed(optimizer=SGD(learning_rate=RATE, l1=-0.1)),
    "optimizer.b2 1.0": changed(optimizer=AdamW(learning_rate=RATE, b2=1.0)),
    "optimizer.weight-decay -0.1": changed(optimizer=AdamW(learning_rate=RATE, weight_decay=-0.1)),
}
IMAGES = Images(records=Synthetic(images=("image",)), batch=2, size=8, classes=2)
AUGMENT = {
    "size 0": RandomCrop(size=0),
    "least -0.1": ResizedCrop(least=-0.1),
    "least nan": ResizedCrop(least=math.nan),
    "least 0.9": ResizedCrop(least=0.9, most=0.5),
    "most 1.1": ResizedCrop(most=1.1),
    "ratio 0.5": Erasing(ratio=0.5),
    "size -3": CentralCrop(size=-3),
    "share 1.5": CentralCrop(share=1.5),
    "share 0.0": CentralCrop(share=0.0),
    "padding -1": RandomCrop(padding=-1),
    "probability 1.01": Flip(probability=1.01),
    "probability -0.5": Erasing(probability=-0.5),
    "probability nan": Flip(probability=math.nan),
    "hue 0.6": ColorJitter(hue=0.6),
    "brightness -1.0": ColorJitter(brightness=-1.0),
    "contrast inf": ColorJitter(contrast=math.inf),
    "std.1 0.0": Normalize(std=(1.0, 0.0, 1.0)),
    "mean.0 nan": Normalize(mean=(math.nan,)),
    "layers 0": RandAugment(layers=0),
    "magnitude -1.0": RandAugment(magnitude=-1.0),
}
BAD |= {
    f"data.augment.0.{o}": changed(data=dataclasses.replace(IMAGES, augment=(a,)))
    for o, a in AUGMENT.items()
}
MIX = {
    "alpha 0.0": Mixup(alpha=0.0),
    "alpha nan": CutMix(alpha=math.nan),
    "probability 2": Either(probability=2),
}
MIX |= {
    "first.alpha -1": Either(first=Mixup(alpha=-1)),
    "probability inf": Either(probability=math.inf),
}
BAD |= {
    f"data.mix.0.{option}": changed(data=dataclasses.replace(IMAGES, mix=(mix,)))
    for option, mix in MIX.items()
}
MEL = {
    "lowest -1.0": LogMel(lowest=-1.0),
    "lowest 90.0": LogMel(lowest=90.0, highest=80.0),
    "hop 0": LogMel(hop=0),
}
MEL |= {"floor 0.0": LogMel(floor=0.0), "mels 0": LogMel(mels=0)}
BAD |= {
    f"data.spectrogram.{option}": changed(
        data=Sounds(records=Synthetic(), batch=2, classes=2, spectrogram=mel)
    )
    for option, mel in MEL.items()
}
FOLDER = ImageFolder(folder="")
WRONG: dict[str, dict[str, Any]] = {
    "data.size 0": {"size": 0},
    "data.canvas -1": {"canvas": -1},
    "data.records.count 0": {"records": Synthetic(count=0)},
    "data.records.eval-share 1.0": {"records": dataclasses.replace(FOLDER, eval_share=1.0)},
    "data.records.limit 0": {"records": dataclasses.replace(FOLDER, limit=0)},
}
BAD |= {
    option: changed(data=dataclasses.replace(IMAGES, **fields)) for option, fields in WRONG.items()
}
BAD |= {"data.shape.1 0": changed(data=Columns(records=Synthetic(), batch=2, shape=(3, 0)))}


@pytest.mark.parametrize("option", BAD)
def test_a_number_that_cannot_be_right_is_refused_as_its_option(option: str) -> None:
    said = refusal(BAD[option].check)
    assert said.startswith(f"--{option}: it must be ") and "\n" not in said


def test_numbers_of_classes_and_tokens_that_are_beyond_the_model_are_refused() -> None:
    images = dataclasses.replace(IMAGES, classes=11)
    text = PyText(batch=8, length=8)
    for bad, said in (
        (
            changed(data=images),
            "the data has 11 classes, and --model.classes 10: it must be 11 or more.",
        ),
        (
            changed(data=text, model=Decoder(vocab=99)),
            "256 tokens, and --model.vocab 99: it must be 256 or more.",
        ),
        (changed(data=text, objective=NextToken(vocab=99)), "256 tokens, and --objective.vocab 99"),
    ):
        assert said in refusal(bad.check)


def test_a_size_that_would_remove_nothing_is_refused() -> None:
    assert refusal(changed(keep_gb=5.0).check) == (
        "--keep-gb 5: it removes none of the latest and best checkpoints: give --keep-every or "
        "--keep-hours too, or a lower --keep-last."
    )
    changed(keep_gb=5.0, keep_hours=1.0).check()


@pytest.mark.parametrize(
    "fields",
    [{}, {"seed": 2**32 - 1}, {"keep_best": 0, "reader_threads": 0}, {"steps": 1}],
    ids=str,
)
def test_numbers_at_the_border_are_right(fields: dict[str, Any]) -> None:
    changed(**fields).check()


def test_masking_of_all_tokens_is_allowed() -> None:
    changed(objective=MaskedToken(vocab=5, mask_token=4, rate=1)).check()


def test_augmentation_at_the_border_is_right() -> None:
    augment = (
        ResizedCrop(least=1, most=1, ratio=1),
        Flip(probability=1),
        ColorJitter(hue=0.5),
        Erasing(probability=0),
    )
    changed(
        data=dataclasses.replace(IMAGES, augment=augment, center=(CentralCrop(share=1),))
    ).check()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_passes_its_check(name: str) -> None:
    load(name).check()


def test_json_of_a_decoder_has_its_inherited_fields() -> None:
    found = to_json(Decoder(vocab=256, depth=2, width=64, heads=4))
    fields = {"vocab": 256, "depth": 2, "width": 64, "heads": 4, "dropout": 0.0, "scan": False}
    assert {"type": "Decoder", **fields}.items() <= found.items()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "initialize_from",
            "runs/b",
            r"'runs/b': .* InitializeFrom, as jb.InitializeFrom\(run=\"r",
        ),
        ("optimizer", "AdamW", r"'AdamW': it must be an instance of Optimizer\."),
        ("data", None, r"None: it must be an instance of Data\."),
        ("mesh", {"data": 2}, r"{'data': 2}: it must be an instance of Mesh\."),
        ("objective", Callback, r"<class .*: it must be an instance of Objective\."),
        ("model", Digits(batch=8), r"Digits\(.*: it must be an instance of Module\."),
    ],
)
def test_part_of_another_kind_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(Refused, match=f"^{field} {message}"):
        load("digits_convnet").replace(**{field: value}).check()


def test_detection_without_the_metric_that_ranks_its_checkpoints_is_refused() -> None:
    with pytest.raises(Refused, match=r"by 'ap', and there are no metrics: .*AveragePrecision\(\)"):
        load("digits_detection").replace(metrics=()).check()
