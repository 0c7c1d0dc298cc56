"""Curves of two runs: of the model, and not of the machine."""

import json
from pathlib import Path

import pytest

from jaxbig.cli.compare import Compare
from jaxbig.system.json_files import write_json
from jaxbig.tools.compare_runs import compare, read_curves

SPEEDS = [
    "steps_per_second",
    "examples_per_second",
    "tokens_per_second",
    "tokens_per_second_per_device",
]
SPEEDS += [
    "examples_per_second_per_device",
    "real_tokens_per_second",
    "model_flops_per_second",
    "mfu",
    "data_wait",
]


def run(
    folder: Path, speed: float, summary: bytes = b'{"step": 1, "state_sha256": "x", "metrics": {}}'
) -> Path:
    folder.mkdir()
    write_json(folder / "run.json", {"experiment": {"seed": 0}, "data_identity": "x"})
    line = {
        "step": 1,
        "split": "train",
        "loss": 0.5,
        "learning_rate": 0.1,
        **dict.fromkeys(SPEEDS, speed),
    }
    (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\nno line of ours\n")
    (folder / "summary.json").write_bytes(summary)
    return folder


def test_two_runs_of_one_digest_have_no_gap_whatever_their_speed(tmp_path: Path) -> None:
    found = compare([run(tmp_path / "a", 1.0), run(tmp_path / "b", 7.0)])
    assert {gap["metric"]: gap["widest_gap"] for gap in found["curves"]} == {
        "train/loss": 0,
        "train/learning_rate": 0,
    }
    assert found["differences"] == []


@pytest.mark.parametrize("above", [True, False])
def test_widest_gap_is_the_largest_distance_either_way(above: bool, tmp_path: Path) -> None:
    losses = {True: (0.5, 0.75, 0.5), False: (0.5, 0.25, 0.5)}[above]
    for name, each in (("a", (0.5, 0.5, 0.5)), ("b", losses)):
        folder = run(tmp_path / name, 1.0)
        lines = [
            json.dumps({"step": step, "split": "train", "loss": loss})
            for step, loss in enumerate(each, 1)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [gap] = [
        each
        for each in compare([tmp_path / "a", tmp_path / "b"])["curves"]
        if each["workdir"].endswith("b")
    ]
    assert (gap["shared_steps"], gap["widest_gap"], gap["at_step"]) == (3, 0.25, 2)


def test_every_speed_of_a_run_is_left_out(tmp_path: Path) -> None:
    assert set(read_curves(run(tmp_path / "a", 1.0))) == {"train/loss", "train/learning_rate"}


@pytest.mark.parametrize("summary", [b"", b"[]", b"{"])
def test_a_damaged_summary_is_left_out_with_a_warning(
    summary: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = compare([run(tmp_path / "a", 1.0, summary), run(tmp_path / "b", 1.0)])
    assert found["runs"][0]["step"] is None and found["runs"][1]["step"] is not None
    assert f"{tmp_path}/a/summary.json is broken: it is left out" in caplog.text


def test_a_summary_of_another_program_has_no_end(tmp_path: Path) -> None:
    assert (
        compare([run(tmp_path / "a", 1.0, b"{}"), run(tmp_path / "b", 1.0)])["runs"][0]["metrics"]
        == {}
    )


def test_a_field_that_an_older_run_lacks_at_its_default_is_no_difference(tmp_path: Path) -> None:
    old = run(tmp_path / "a", 1.0)
    new = run(tmp_path / "b", 1.0)
    fields = {"seed": 0, "patience": 0, "metrics": []}
    write_json(new / "run.json", {"experiment": fields, "data_identity": "x"})
    assert compare([old, new])["differences"] == []
    write_json(new / "run.json", {"experiment": {**fields, "patience": 2}, "data_identity": "x"})
    differences = [row["differs"] for row in compare([old, new])["differences"]]
    assert differences == ["experiment.patience: null -> 2"]


def test_digests_are_printed_short_and_given_whole_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "0123456789abcdef" * 4
    summary = json.dumps({"step": 1, "state_sha256": digest, "metrics": {}}).encode()
    folders = [run(tmp_path / name, 1.0, summary) for name in "ab"]
    Compare(workdirs=folders)()
    printed = capsys.readouterr().out
    assert printed.count(" 0123456789ab\n") == 2 and "0123456789abc" not in printed
    Compare(workdirs=folders, json=True)()
    assert json.loads(capsys.readouterr().out)["runs"][0]["state_sha256"] == digest


def test_equal_curves_are_printed_as_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run(tmp_path / name, 1.0) for name in "ab"]
    (folders[1] / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "loss": 0.75, "learning_rate": 0.1}\n'
    )
    Compare(workdirs=folders)()
    rows = {line.split()[1]: line.split()[2:] for line in capsys.readouterr().out.splitlines()[-2:]}
    assert rows == {"train/learning_rate": ["1", "equal"], "train/loss": ["1", "0.25", "1"]}
