"""The command line: what it prints, what it refuses and how, and the files it leaves."""

import ast
import inspect
import io
import itertools
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.compiling import HASTY
from support.experiments import SHIPPED

from jaxbig.cli import main as command_line
from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.main import main
from jaxbig.cli.train import Train
from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Failed
from jaxbig.models.language_model import Decoder
from jaxbig.optim.schedules import WarmupCosine

MLP = '''"""A single hidden layer on the digits."""

import dataclasses

from jaxbig.experiments import digits_convnet
from jaxbig.config.experiment import Experiment
from jaxbig.models.convnet import ConvNet, Dense


def config() -> Experiment:
    model = ConvNet(layers=(Dense(16),), classes=10)
    every = {"steps": 20, "log_every": 1, "evaluate_every": 10, "checkpoint_every": 10}
    return dataclasses.replace(digits_convnet.config(), model=model, **every)
'''
SMALL = [
    f"--model.layers.{layer}=8" for layer in ("0.channels", "1.channels", "4.channels", "7.width")
]
Answer = tuple[Any, str, str]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Runs a command line in a folder with few files: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    Path("small_mlp.py").write_text(MLP)
    Path("no_config.py").write_text('"""Nothing."""\n')
    Path("no_experiment.py").write_text("def config():\n    return 3\n")
    Path("cut_off.py").write_text("def config(\n")
    Path("plain_file").write_text("")
    Path("empty").mkdir()

    def carry_out(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["jaxbig", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return carry_out


def sentence(text: str) -> str:
    """What a refusal says: one line that starts with the command's name."""
    assert re.fullmatch(r"jaxbig: [^\n]{20,600}\n", text), text
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("trian digits_convnet", ["'trian'", "train", "evaluate"]),
        ("train", ["experiment", "jaxbig list"]),
        ("train --steps 3", ["experiment", "jaxbig list"]),
        ("train digits_convnt", ["'digits_convnt'", "digits_convnet"]),
        ("train qqq", ["'qqq'", "jaxbig list"]),
        ("train no.such.module", ["'no.such.module'"]),
        ("train missing.py", ["missing.py", "jaxbig list"]),
        ("train no_config.py", ["no_config.py", "config()"]),
        ("train no_experiment.py", ["no_experiment.py", "int", "Experiment"]),
        ("train cut_off.py", ["cut_off.py", "line 1"]),
        ("train digits_convnet --model.dept 3", ["--model.dept", "--help"]),
        ("train pytext_transformer --model.dept 3", ["--model.dept", "--model.depth", "--help"]),
        (
            "train digits_convnet --model.layers.9.channels 3",
            ["--model.layers.9.channels", "--model.layers.0.channels"],
        ),
        (
            "train digits_convnet --model.layers.2.kind median",
            ["median", "--model.layers.2.kind", "max", "mean"],
        ),
        ("train digits_convnet --steps many", ["--steps", "many"]),
        ("train digits_convnet --steps", ["--steps"]),
        ("train digits_convnet extra", ["extra"]),
        ("train digits_convnet --steps 0", ["--steps 0", "1 or more"]),
        ("train digits_convnet --log-every -1", ["--log-every -1", "1 or more"]),
        ("train digits_convnet --seed -1", ["--seed -1", "0 or more"]),
        ("train digits_convnet --seed 4294967296", ["--seed 4294967296"]),
        (
            "train digits_convnet --data.batch 100",
            ["--data.batch 100", "8 devices", "multiple of 8"],
        ),
        ("train digits_convnet --data.batch 0", ["--data.batch 0", "1 or more"]),
        (
            "train digits_convnet --mesh.data 3",
            ["data=3", "needs 3 devices", "there are 8", "--mesh.data"],
        ),
        ("train digits_convnet --mesh.tensor 3", ["tensor=3", "multiple of 3", "there are 8"]),
        ("train digits_convnet --mesh.fsdp -1", ["data=-1", "fsdp=-1"]),
        ("train digits_rnn --mesh.tensor 8 --model.width 12", ["lstm_0", "12", "tensor=8"]),
        ("train digits_rnn --model.classes 7", ["10 classes", "--model.classes 7"]),
        ("train pytext_transformer --model.heads 3", ["width 128", "heads 3"]),
        ("train digits_convnet --optimizer.decayed (", ["--optimizer.decayed", "'('"]),
        (
            "train digits_convnet --optimizer.learning-rate.warmup -4",
            ["--optimizer.learning-rate.warmup -4", "0 or more"],
        ),
        ("train digits_convnet --workdir plain_file/run", ["plain_file/run", "--workdir"]),
        ("train digits_convnet --workdir plain_file", ["plain_file", "--workdir"]),
        ("evaluate digits_convnet --workdir empty", ["empty", "--workdir"]),
        ("evaluate digits_convnet", ["runs/digits_convnet", "--workdir"]),
        ("compare", ["two or more", "got 0"]),
        ("compare empty", ["two or more", "got 1"]),
        ("compare empty plain_file", ["empty", "run.json"]),
        ("bench digits_convnet --steps-a-round 0", ["--steps-a-round 0", "1 or more"]),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence_that_names_it(
    line: str, named: list[str], command: Callable[..., Answer], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*line.split())
    assert (code, out) == (2, "")
    assert [part for part in named if part not in sentence(err)] == [], err
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_an_unknown_option_is_refused_before_a_device_is_touched(jaxbig: Any) -> None:
    done = jaxbig(
        "train", "pytext_transformer", "--model.dept", 3, JAX_PLATFORMS="no_such_platform"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--model.depth" in sentence(done.stderr)


def test_a_refusal_is_a_sentence_where_only_ascii_can_be_printed(jaxbig: Any) -> None:
    done = jaxbig("train", "digits_rnn", "--model.widht", 3, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--model.width" in sentence(done.stderr)


def test_a_batch_that_does_not_divide_is_refused_by_the_process(
    jaxbig: Any, tmp_path: Path
) -> None:
    done = jaxbig("train", "digits_convnet", "--data.batch", 100, JAX_NUM_CPU_DEVICES="8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "multiple of 8" in sentence(done.stderr)
    assert not any(tmp_path.iterdir())


def plain(text: str) -> str:
    """Text without boxes and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def attribute_docstring(owner: type, name: str) -> str:
    """The docstring below a field in the source of its class or of a base class, on one line."""
    for each in owner.__mro__[:-1]:
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name:
                assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                return " ".join(str(text.value.value).split())
    raise AssertionError(f"{owner.__name__} has no field {name}")


def test_help_shows_every_option_with_its_docstring_and_default(
    command: Callable[..., Answer],
) -> None:
    code, out, err = command("train", "pytext_transformer", "--help")
    assert (code, err) == (0, "")
    for option, owner, name, default in (
        ("--steps INT", Experiment, "steps", " (default: 1200)"),
        ("--workdir {None}|PATH", RunCommand, "workdir", ""),
        ("--fork", Train, "fork", ""),
        ("--model.depth INT", Decoder, "depth", " (default: 4)"),
        ("--data.batch INT", Data, "batch", " (default: 8)"),
        ("--optimizer.learning-rate.peak FLOAT", WarmupCosine, "peak", " (default: 0.002)"),
        ("--mesh.tensor INT", Mesh, "tensor", " (default: 1)"),
    ):
        range_of_values = r"( >=? \S+)?( <=? \S+)?" if option.endswith(("INT", "FLOAT")) else ""
        text = re.escape(attribute_docstring(owner, name).replace("`", "") + default)
        expected = re.escape(option) + range_of_values + " " + text
        assert re.search(expected, plain(out).replace("`", "")), expected


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_no_command_or_help_lists_all_commands(
    arguments: list[str], command: Callable[..., Answer]
) -> None:
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert all(name in out for name in ("list", "show", "train", "evaluate", "compare", "bench"))


def answer(code: Any, out: str, err: str) -> dict[str, Any]:
    """The one JSON object on standard output."""
    assert code == 0, err
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_list_names_what_ships_and_what_is_here(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "small_mlp.py").write_text(MLP)
    (tmp_path / "experiments" / "digits_rnn.py").write_text("config = (")
    listed = {
        row["experiment"]: row["summary"]
        for row in answer(*command("list", "--json"))["experiments"]
    }
    assert sorted(listed) == sorted([*SHIPPED, "small_mlp"])
    assert listed["small_mlp"] == "A single hidden layer on the digits."
    assert listed["digits_convnet"] == "A small conv net on scikit-learn's handwritten digits."
    assert "line 1" in listed["digits_rnn"]
    assert "A single hidden layer on the digits." in command("list")[1]
    assert answer(*command("show", "small_mlp", "--json"))["parameters"] == 1210


@pytest.mark.parametrize(
    ("mesh", "kernel_pieces"),
    [(["--mesh.data", "8"], 1), (["--mesh.data", "1", "--mesh.fsdp", "8"], 8)],
    ids=["data", "fsdp"],
)
def test_show_counts_parameters_and_the_bytes_of_a_device(
    mesh: list[str], kernel_pieces: int, command: Callable[..., Answer], tmp_path: Path
) -> None:
    shown = answer(*command("show", "small_mlp.py", "--seed", 7, *mesh, "--json"))
    kernels = 64 * 16 + 16 * 10
    biases = 16 + 10
    held = kernels // kernel_pieces + biases
    assert shown["parameters"] == kernels + biases
    assert shown["devices"]["count"] == 8
    assert shown["experiment"]["seed"] == 7
    assert shown["experiment"]["model"]["layers"] == [{"type": "Dense", "width": 16}]
    assert shown["bytes_per_device"]["parameters"] == 4 * held
    assert 8 * held <= shown["bytes_per_device"]["optimizer"] <= 8 * held + 16
    assert shown["bytes_per_device"]["batch"] == 128 // 8 * (64 + 1 + 1) * 4
    assert "layers_0/linear/kernel" in command("show", "small_mlp.py", *mesh)[1]
    assert not (tmp_path / "runs").exists()


def test_bench_measures_the_loop_and_the_bare_step(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    found = answer(*command("bench", "small_mlp.py", "--steps-a-round", 3, "--json"))
    numbers = ("step_seconds", "examples_per_second", "ratio", "compile_seconds", "peak_bytes")
    assert all(found[name] > 0 for name in numbers) and found["against"]
    assert found["examples_per_second"] == pytest.approx(128 / found["step_seconds"])
    assert not (tmp_path / "runs").exists()


def test_train_evaluate_and_compare_agree(command: Callable[..., Answer], tmp_path: Path) -> None:
    one = answer(*command("train", "small_mlp.py", "--json"))
    other = answer(*command("train", "small_mlp.py", "--seed", 1, "--workdir", "other", "--json"))
    folder = tmp_path / "runs" / "small_mlp"
    assert one == json.loads((folder / "summary.json").read_text())
    assert one["step"] == 20 and one["state_sha256"] != other["state_sha256"]

    before = contents(folder)
    evaluated = answer(*command("evaluate", "small_mlp.py", "--json"))
    assert evaluated["step"] == 20
    assert {f"eval/{name}": value for name, value in evaluated["metrics"].items()}.items() <= one[
        "metrics"
    ].items()
    assert f"{evaluated['metrics']['accuracy']:.6g}" in command("evaluate", "small_mlp.py")[1]
    code, _, err = command("evaluate", "small_mlp.py", "--model.layers.0.width", 8)
    assert code == 2 and "model.layers.0.width: 16 -> 8" in sentence(err)
    assert contents(folder) == before

    compared = answer(*command("compare", folder, "other", folder, "--json"))
    assert [run["state_sha256"] for run in compared["runs"]] == [
        summary["state_sha256"] for summary in (one, other, one)
    ]
    assert compared["differences"] == [{"workdir": "other", "differs": "experiment.seed: 0 -> 1"}]
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").open()]
        for run in (folder, tmp_path / "other")
    ]
    losses = [
        {line["step"]: line["loss"] for line in each if line["split"] == "train"} for each in lines
    ]
    gaps = {(gap["workdir"], gap["metric"]): gap for gap in compared["curves"]}
    assert gaps["other", "train/loss"]["shared_steps"] == 20
    assert gaps["other", "train/loss"]["widest_gap"] == max(
        abs(losses[0][s] - losses[1][s]) for s in range(1, 21)
    )
    assert {gap["widest_gap"] for gap in compared["curves"] if gap["workdir"] == str(folder)} == {0}
    assert "experiment.seed: 0 -> 1" in command("compare", folder, "other")[1]


def test_a_run_leaves_the_files_of_the_contract_and_run_again_is_done_already(
    jaxbig: Any, tmp_path: Path
) -> None:
    train = ["digits_convnet", "--steps", 20, "--workdir", "run", *SMALL]
    # no run needs PyTorch, and importing it takes seconds
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was imported')")
    done = jaxbig("train", *train, **HASTY)
    assert (
        done.returncode == 0
        and "digits_convnet is done" in done.stdout
        and "Traceback" not in done.stderr
    )
    run = tmp_path / "run"
    assert {entry.name for entry in run.iterdir()} - {"lock"} == {
        "run.json",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "checkpoints",
    }
    assert {entry.name for entry in (run / "checkpoints").iterdir()} == {"20", "run.json"}
    described = json.loads((run / "run.json").read_text())
    recorded = {
        "experiment",
        "fingerprint",
        "versions",
        "devices",
        "mesh",
        "data_identity",
        "git_commit",
    }
    assert recorded <= described.keys() and described["experiment"]["model"]["layers"][7] == {
        "type": "Dense",
        "width": 8,
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [(line["step"], line["split"]) for line in lines] == [
        (10, "train"),
        (20, "train"),
        (20, "eval"),
    ]
    assert all(line["loss"] > 0 for line in lines)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 20 and re.fullmatch("[0-9a-f]{64}", summary["state_sha256"])
    assert "".join(plain(done.stdout).split()).count(summary["state_sha256"]) == 1

    evaluated = jaxbig("evaluate", *train, "--json", **HASTY)
    metrics = answer(evaluated.returncode, evaluated.stdout, evaluated.stderr)["metrics"]
    assert metrics == {
        name.removeprefix("eval/"): value
        for name, value in summary["metrics"].items()
        if name.startswith("eval/")
    }

    again = jaxbig("train", *train, "--json", **HASTY)
    assert answer(again.returncode, again.stdout, again.stderr) == summary
    assert "digits_convnet is done" in again.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(Failed("full"), 1), (KeyboardInterrupt(), 130)], ids=["failed", "Ctrl-C"]
)
def test_a_command_that_ends_in_its_midst_does_not_wait_for_python_s_own_end(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """The output is flushed before the exit.

    In Python's own end a compilation that Ctrl-C interrupts crashes, and Orbax waits.
    """
    written = io.BytesIO()
    output = []

    def run(arguments: Any) -> int:
        print("printed")
        raise error

    def end(code: int) -> None:
        output.append(written.getvalue())
        raise SystemExit(code)

    monkeypatch.setattr(command_line, "run", run)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, output) == (code, [b"printed\n"])
