"""Sweeps: what is asked for, what runs, what is gone on with, and how it is ranked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.compiling import HASTY

from jaxbig.cli.sweep import Sweep as SweepCommand
from jaxbig.cli.tables import sweep_ranking
from jaxbig.config.discover import load
from jaxbig.errors import Refused
from jaxbig.sweep.picture import draw, log_spaced
from jaxbig.sweep.search_space import Range, literal, options, parse_axis, settings
from jaxbig.sweep.sweep import Sweep
from jaxbig.system.json_files import write_json

SMALL = [
    f"--model.layers.{layer}=8" for layer in ("0.channels", "1.channels", "4.channels", "7.width")
]
SHORT = [*SMALL, "--steps=6", "--data.batch=32", "--evaluate-every=3", "--checkpoint-every=3"]


def test_a_grid_is_all_with_all() -> None:
    found = settings(["seed=0,1", "model.dropout=0.1,0.5"], None, 0, None, "a")
    pairs = [(s["seed"], s["model.dropout"]) for s in found]
    assert pairs == [(0, 0.1), (0, 0.5), (1, 0.1), (1, 0.5)]


def test_draws_are_fixed_by_their_seed_and_lie_in_their_ranges() -> None:
    axes = [
        "optimizer.learning_rate.peak=log:1e-4:1e-2",
        "model.depth=int:1:3",
        "model.norm=layer,rms",
        "x=uniform:-1:1",
    ]
    found = settings(axes, 200, 0, None, "a")
    assert found == settings(axes, 200, 0, None, "a") != settings(axes, 200, 1, None, "a")
    assert found[:50] == settings(axes, 50, 0, None, "a")
    peaks = [each["optimizer.learning_rate.peak"] for each in found]
    assert (
        all(1e-4 <= peak <= 1e-2 for peak in peaks)
        and 80 < sum(peak < 1e-3 for peak in peaks) < 120
    )
    assert {each["model.depth"] for each in found} == {1, 2, 3}
    assert {each["model.norm"] for each in found} == {"layer", "rms"}
    assert parse_axis("x=uniform:-1:1") == ("x", Range("uniform", -1, 1))


def test_a_setting_is_written_as_options() -> None:
    setting = {
        "optimizer.learning_rate.peak": 1e-3,
        "model.use_bias": False,
        "a": True,
        "stages": [1, 2],
        "b": None,
        "c": "x; y",
    }
    words = "--optimizer.learning-rate.peak=0.001 --model.no-use-bias --a --stages 1 2 --b=None"
    assert options(setting) == [*words.split(), "--c=x; y"]


@pytest.mark.parametrize(
    "asked",
    [
        {"axes": ["seed"]},
        {"axes": ["seed="]},
        {"axes": ["seed=0", "seed=1"]},
        {"axes": ["peak=log:0:1"], "count": 3},
        {"axes": ["peak=log:1"], "count": 3},
        {"axes": ["depth=int:1.5:2"], "count": 3},
        {"axes": ["peak=log:1e-4:1e-2"]},
        {"axes": ["seed=0"], "count": 0},
        {"axes": [], "count": 3},
        {"axes": []},
        {"axes": ["seed=0"], "file": Path("x.jsonl")},
        {"axes": [], "file": Path("nowhere.jsonl")},
    ],
)
def test_what_is_no_sweep_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        settings(**({"count": None, "seed": 0, "file": None, "name": "digits_convnet"} | asked))


@pytest.mark.parametrize("path", ["workdir", "../x", "a b", "--seed", "fork", ""])
def test_what_is_no_option_of_an_experiment_cannot_be_swept(path: str) -> None:
    with pytest.raises(Refused):
        options({path: 1})


def test_lists_come_from_a_file_or_from_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"seed": 1}\n\n{"seed": 2, "model.depth": 3}\n')
    assert settings([], None, 0, tmp_path / "list.jsonl", "a") == [
        {"seed": 1},
        {"seed": 2, "model.depth": 3},
    ]
    (tmp_path / "list.jsonl").write_text('{"seed": {"a": 1}}\n')
    with pytest.raises(Refused, match="OPTION: VALUE"):
        settings([], None, 0, tmp_path / "list.jsonl", "a")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from jaxbig.experiments.digits_convnet import config\n"
        "def sweep():\n    return [{'seed': 5}]\n"
    )
    assert settings([], None, 0, None, str(mine)) == [{"seed": 5}]


def finished(runs: Sweep, number: int, value: float) -> None:
    runs.place(number).mkdir(exist_ok=True)
    best = {"step": 3, "eval/accuracy": value}
    summary = {
        "step": 6,
        "best": best,
        "metrics": {"eval/accuracy": value},
        "state_sha256": "x",
        "interrupted": False,
    }
    write_json(runs.place(number) / "summary.json", summary)


def test_a_sweep_keeps_numbers_is_extended_and_ranks_the_best_first(tmp_path: Path) -> None:
    asked = [{"seed": 0}, {"seed": 1, "optimizer.learning_rate.peak": 1e-4}, {"seed": 0}]
    runs = Sweep(tmp_path / "sweep", "digits_convnet", SHORT, asked)
    assert runs.waiting() == [0, 1]
    finished(runs, 1, 0.5)
    runs = Sweep(
        tmp_path / "sweep",
        "digits_convnet",
        SHORT,
        [{"seed": 9, "optimizer.learning_rate.peak": 1e-2}, *asked],
    )
    assert [run["setting"]["seed"] for run in runs.result()["runs"]] == [
        0,
        1,
        9,
    ] and runs.waiting() == [0, 2]
    finished(runs, 2, 0.9)
    result = runs.result()
    assert (
        result["ranked"] == [2, 1]
        and result["criterion"] == "accuracy"
        and result["higher_is_better"]
    )
    assert [row["run"] for row in sweep_ranking(result)] == ["002", "001", "000"]
    assert draw(result, tmp_path / "sweep.png")
    assert Image.open(tmp_path / "sweep.png").size == (1210, 440)
    with pytest.raises(Refused, match="another sweep"):
        Sweep(tmp_path / "sweep", "digits_convnet", [*SHORT, "--accumulate=2"], asked)
    (tmp_path / "sweep" / "000").symlink_to(tmp_path)
    with pytest.raises(Refused, match="link"):
        runs.result()


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1e-4, 1e-2], True),
        ([1, 2], False),
        ([3e-4, 1e-3, 3e-3, 1e-3], True),
        ([2, 8, 4, 1], True),
        ([1, 2, 3], False),
        ([0.1, 0.5, 0.9], False),
        ([0, 1, 10, 100], False),
        ([-1, 1], False),
        ([5, 5], False),
    ],
)
def test_an_axis_is_logarithmic_where_values_are_spaced_so(
    values: list[float], logarithmic: bool
) -> None:
    assert log_spaced(values) == logarithmic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1", 1),
            ("-3", -3),
            ("0", 0),
            ("1e-3", 1e-3),
            ("0.5", 0.5),
            (".5", 0.5),
            ("2.", 2.0),
            ("True", True),
        ),
        *(
            (each, each)
            for each in (
                "007",
                "01.5",
                "1e999",
                "1_000",
                "true",
                "v1",
                "nan",
                "inf",
                "1e",
                "0x1",
                "",
            )
        ),
        *((each, each) for each in ("1\u0661", "\u0661", "1\u0661.5", " 1")),
    ],
)
def test_text_that_is_no_number_stays_as_it_was_written(text: str, value: Any) -> None:
    found = literal(text)
    assert found == value and type(found) is type(value)
    if isinstance(value, str):
        assert options({"a": found}) == [f"--a={text}"]


def test_settings_that_python_calls_equal_are_runs_of_their_own(tmp_path: Path) -> None:
    """True is 1 and 1.0 in Python: one of them would be left out without a word."""
    asked = [{"log_every": 1}, {"reproducible": 0}, {"offload": False}, {"log_every": 1}]
    runs = Sweep(tmp_path, "digits_convnet", SHORT, asked)
    assert runs.settings == asked[:3] and len({runs.place(number) for number in range(3)}) == 3
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(Refused, match=r"--seed"):  # not taken for the setting before it
        Sweep(tmp_path, "digits_convnet", SHORT, [{"seed": 1}, {"seed": 1.0}])


@pytest.mark.parametrize(
    "content", ["", "[]", '{"runs": 3}', '{"experiment": "digits_convnet", "runs": [1]}']
)
def test_a_sweep_s_file_that_is_damaged_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(Refused, match=r"sweep"):
        Sweep(tmp_path, "digits_convnet", SHORT, [{"seed": 0}])
    assert (tmp_path / "sweep.json").read_text() == content


def test_a_sweep_in_the_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(Refused, match=r"is the folder of a run"):
        Sweep(tmp_path, "digits_convnet", SHORT, [{"seed": 0}])


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_run_whose_summary_is_damaged_is_not_done(content: str, tmp_path: Path) -> None:
    runs = Sweep(tmp_path, "digits_convnet", SHORT, [{"seed": 0}])
    finished(runs, 0, 0.5)
    assert runs.waiting() == []
    (runs.place(0) / "summary.json").write_text(content)
    assert runs.waiting() == [0] and runs.result()["ranked"] == []


@pytest.mark.parametrize("there", [(), ("runs",), ("runs", "runs/digits_convnet-sweep")])
@pytest.mark.parametrize("bad", ["optimizer.learning_rate.paek=1", "seed=-1", "steps=x"])
def test_a_sweep_that_is_refused_leaves_nothing_behind(
    bad: str, there: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in there:
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = ("--set", "seed=0", bad)
    command = SweepCommand(
        name="digits_convnet", options=words, experiment=load("digits_convnet"), axes=words[1:]
    )
    with pytest.raises(Refused):
        command()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_setting_that_cannot_be_is_refused_before_any_run(tmp_path: Path, jaxbig: Any) -> None:
    for bad in ("optimizer.learning_rate.paek=1", "seed=-1", "steps=x"):
        done = jaxbig("sweep", "digits_convnet", "--set", "seed=0", bad)
        assert done.returncode == 2 and done.stdout == "", done.stderr
    assert not list(tmp_path.glob("runs/*/0*"))


@pytest.mark.slow
def test_a_slurm_array_is_printed_for_what_is_not_done(tmp_path: Path, jaxbig: Any) -> None:
    done = jaxbig(
        "sweep", "digits_convnet", *SHORT, "--set", "seed=0,1", "--slurm", "time=1:00:00", "gpus=1"
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0,1" in done.stdout and "#SBATCH --gpus-per-node=1" in done.stdout
    assert "0) options=(--seed=0 --workdir runs/digits_convnet-sweep/000) ;;" in done.stdout
    assert f'run=(jaxbig train digits_convnet {" ".join(SHORT)} "${{options[@]}}")' in done.stdout


@pytest.mark.slow
def test_interrupted_sweep_resumes_and_ends_with_a_ranking(tmp_path: Path, jaxbig: Any) -> None:
    words = [
        "sweep",
        "digits_convnet",
        *SHORT,
        "--steps=300",
        "--set",
        "optimizer.learning_rate.peak=1e-3,1e-5",
        "--at-once=2",
    ]
    environment = {**os.environ, **HASTY, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "jaxbig", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    folder = tmp_path / "runs" / "digits_convnet-sweep"
    while not (folder / "000" / "checkpoints" / "3").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 75 and "run the same command to resume" in out
    done = jaxbig(*words, "--json", **HASTY)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ranked"][0] == 0 and [run["step"] for run in result["runs"]] == [300, 300]
    assert (
        json.loads((folder / "sweep.json").read_text()) == result
        and (folder / "sweep.png").exists()
    )
    assert "resuming from step" in (folder / "000.log").read_text()
    before = (folder / "000.log").read_bytes()
    assert (
        jaxbig(*words).returncode == 0 and (folder / "000.log").read_bytes() == before
    )  # nothing was left to do
