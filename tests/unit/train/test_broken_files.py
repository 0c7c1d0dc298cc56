"""Files of a run that a power loss has left empty, cut off or full of garbage cost nothing."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.experiments import small

from jaxbig.config.deserialize import load_run
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import to_json
from jaxbig.errors import Failed, Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.tools.compare_runs import compare
from jaxbig.tracking import metrics_writer
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.evaluate import evaluate_run
from jaxbig.train.evaluate_checkpoints import is_finished
from jaxbig.train.resume import differences
from jaxbig.train.rewind import is_rewound
from jaxbig.train.run_description import read_run
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
FILES = ("run.json", "metrics.jsonl", "summary.json")
Damage = Callable[[bytes, random.Random], bytes]


def overwritten(content: bytes, at: random.Random, letters: bytes) -> bytes:
    place = at.randrange(len(content))
    block = bytes(at.choices(letters, k=at.randint(1, 40)))
    return content[:place] + block + content[place + len(block) :]


DAMAGE: dict[str, Damage] = {
    "empty": lambda content, at: b"",
    "cut": lambda content, at: content[: at.randrange(1, len(content) - 2)],
    "zeros": lambda content, at: bytes(len(content)),
    "garbage": lambda content, at: overwritten(content, at, bytes(range(128, 256))),
    "letters": lambda content, at: overwritten(content, at, b'abc019 ",:{}[]'),
}


def experiment(**changes: Any) -> Experiment:
    model = ConvNet(layers=(Dense(16),), classes=10)
    every = {"steps": 6, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "keep_last": 3}
    return small("digits_convnet", model=model, **{**every, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_programs: None) -> tuple[Path, str]:
    """The folder of a run that was killed after its fourth step of six; its digest without that."""
    folder = tmp_path_factory.mktemp("half") / "run"
    summary = fit(experiment(), folder, Screen())
    shutil.rmtree(folder / "checkpoints" / "6")
    return folder, summary["state_sha256"]


@pytest.fixture(scope="module")
def half(made: tuple[Path, str]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def whole(made: tuple[Path, str]) -> str:
    return made[1]


def damaged(half: Path, folder: Path, name: str, how: str, seed: int) -> bytes:
    """Copies the run, and damages one of its files; what that then holds."""
    shutil.copytree(half, folder)
    content = DAMAGE[how]((half / name).read_bytes(), random.Random(seed))
    (folder / name).write_bytes(content)
    return content


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["empty", "cut", "garbage"])
def test_the_same_command_resumes_and_says_what_was_broken(
    how: str, name: str, half: Path, whole: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    content = damaged(half, folder, name, how, 1)
    if how != "cut":
        assert evaluate_run(experiment(), folder)["step"] == 4
    assert fit(experiment(), folder, Screen())["state_sha256"] == whole
    if name == "run.json":
        assert f"{folder}/run.json is broken, as after a power loss: its copy" in caplog.text
        assert (folder / "broken" / "run-0.json").read_bytes() == content
        assert (folder / "run.json").read_bytes() == (
            folder / "checkpoints" / "run.json"
        ).read_bytes()
    if name == "metrics.jsonl" and how == "garbage":
        assert "cannot be read and" in caplog.text
        assert (folder / "broken" / "metrics-0.jsonl").read_bytes() == content
    assert compare([folder, folder])["runs"][0]["state_sha256"] == whole


def test_run_whose_copy_is_broken_too_is_resumed_when_asked(
    half: Path, whole: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    damaged(half, folder, "run.json", "empty", 0)
    (folder / "checkpoints" / "run.json").write_text("{")
    with pytest.raises(Refused, match=r"it is empty, as after a power loss; .* --adopt"):
        fit(experiment(), folder, Screen())
    assert fit(experiment(), folder, Screen(), adopt=True)["state_sha256"] == whole


def test_copy_of_another_run_is_refused_as_its_run_json(half: Path, tmp_path: Path) -> None:
    damaged(half, tmp_path / "run", "run.json", "zeros", 0)
    with pytest.raises(Refused, match=r"holds another run .*seed: 0 -> 5"):
        fit(experiment(seed=5), tmp_path / "run", Screen())


def test_run_json_without_its_data_is_another_run(half: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"data":', '"dat":'))
    with pytest.raises(Refused, match="holds another run"):
        fit(experiment(), folder, Screen())


def test_row_of_an_evaluation_is_on_disk_before_the_checkpoint_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def sync_open(descriptor: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "metrics.jsonl").stat())
        synced.append(read_metrics(tmp_path)[-1])

    monkeypatch.setattr(metrics_writer, "sync_open", sync_open)
    writer = metrics_writer.MetricsWriter(tmp_path, 0)
    for step, split in ((1, "train"), (2, "eval"), (2, "knn"), (3, "train")):
        writer.write(step, split, {"loss": 1.0})
    writer.close()
    assert [(row["step"], row["split"]) for row in synced] == [(2, "eval"), (2, "knn")]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FILES),
    how=st.sampled_from(sorted(DAMAGE)),
    copy_too=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_whatever_reads_a_broken_file_answers_or_refuses_in_a_sentence(
    half: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    how: str,
    copy_too: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("broken") / "run"
    shutil.copytree(half, folder, ignore=shutil.ignore_patterns("[0-9]*", "tensorboard"))
    content = DAMAGE[how]((half / name).read_bytes(), random.Random(seed))
    (folder / name).write_bytes(content)
    if copy_too and name == "run.json":
        (folder / "checkpoints" / name).write_bytes(content)
    described = to_json(experiment())

    def resumes() -> None:
        run = read_run(folder)
        assert run is not None
        differences(run, {**described, "data_identity": "another"})
        is_rewound(run, described, folder, "4")

    for read in (
        lambda: compare([half, folder]),
        lambda: compare([folder, half]),
        lambda: load_run(folder),
        lambda: is_finished(folder),
        resumes,
    ):
        try:
            read()
        except (Refused, Failed) as error:
            assert "\n" not in str(error) and str(folder) in str(error)
