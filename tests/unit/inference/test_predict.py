"""What a run predicts, from Python and the command line: files, tables, arrays and splits."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from support.programs import share_programs
from support.sample_files import flowers, pictures

import jaxbig as jb
from jaxbig.cli import main as command_line
from jaxbig.inference.inputs import arrays_of, inputs_of_lines
from jaxbig.objectives.base import masked
from jaxbig.train import evaluate, trainer
from jaxbig.train import run as api_run

Tiny = Callable[..., jb.Experiment]
FEW = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """A run is compiled once, though it is restored by each command."""
    make = share_programs()
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainer, evaluate, api_run):
            patch.setattr(module, "make_program", make)
        yield


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    return jb.fit(tiny(), tmp_path_factory.mktemp("digits"))


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with five pictures of digits, one file that is none, and one of another kind."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.md").write_text("no picture either")
    return folder


def command(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    """The lines that `jaxbig predict` prints."""
    assert command_line.run(["predict", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- the numbers


def test_predictions_of_a_split_have_the_accuracy_of_its_evaluation(
    run: jb.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = jb.predict(run, split="eval")
    right = [row["class"] == row["target"] for row in rows]
    assert np.mean(right) == jb.evaluate(run)["accuracy"] == run.metrics["eval/accuracy"]
    assert command(capsys, run.directory, "--split", "eval") == rows


def test_predictions_for_arrays_are_the_probabilities_of_the_outputs(run: jb.Run) -> None:
    images = run.experiment.data.source("eval").rows(np.arange(19))["inputs"]  # a batch is 16
    rows = jb.predict(run, images, top=10)
    probabilities = np.asarray(jax.nn.softmax(jb.apply(run, images)))
    assert [row["record"] for row in rows] == list(range(19))
    for row, expected in zip(rows, probabilities, strict=True):
        found = {int(each["class"]): each["probability"] for each in row["top"]}
        assert [found[k] for k in range(10)] == pytest.approx(expected, rel=1e-5)
        shares = [each["probability"] for each in row["top"]]
        assert shares == sorted(shares, reverse=True)
        assert {"class": row["class"], "probability": row["probability"]} == row["top"][0]


def test_any_order_and_number_of_inputs_gives_the_same_bits(run: jb.Run) -> None:
    images = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
    records = [{"inputs": image} for image in images]
    plain = jb.predict(run, records, top=10)

    def answers(order: Any) -> list[dict[str, Any]]:
        rows = jb.predict(run, [records[i] for i in order], top=10)
        return [{**row, "record": int(i)} for i, row in zip(order, rows, strict=True)]

    for order in ([7], [39, 0, 21], np.random.default_rng(1).permutation(40), range(39, -1, -1)):
        assert answers(order) == [plain[i] for i in order]


def test_another_batch_gives_the_same_answers(run: jb.Run) -> None:
    images = np.random.default_rng(0).random((9, 8, 8, 1), np.float32)
    rows = jb.predict(run, images)
    others = jb.predict(run, images, batch=8)
    for row, other in zip(rows, others, strict=True):
        assert row["class"] == other["class"]
        assert row["probability"] == pytest.approx(other["probability"], rel=1e-5)


# -- files and tables


def test_files_of_a_folder_are_predicted_and_the_unreadable_one_is_named(
    run: jb.Run, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = jb.predict(run.directory, drawn)
    names = [*(str(drawn / f"{number}.png") for number in range(5)), str(drawn / "broken.png")]
    assert [row["record"] for row in rows] == names
    assert all("class" in row for row in rows[:5])
    assert list(rows[5]) == ["record", "error"] and "image" in rows[5]["error"]
    with pytest.raises(jb.Failed, match=r"1 of 6 records cannot be read, such as .*broken\.png"):
        command_line.run(["predict", str(run.directory), str(drawn)])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert command(capsys, run.directory, drawn / "[0-2].png") == rows[:3]
    contents = [(drawn / f"{number}.png").read_bytes() for number in range(5)]
    assert [row["top"] for row in jb.predict(run, contents)] == [row["top"] for row in rows[:5]]


def test_lines_of_standard_input_are_paths_or_records(
    run: jb.Run, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.dumps({"image": np.zeros((8, 8)).tolist()})
    lines = f"{drawn / '1.png'}\n\n{record}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    rows = command(capsys, run.directory, "-")
    assert [row["record"] for row in rows] == [str(drawn / "1.png"), "line 3"]
    assert rows[0] == jb.predict(run, drawn / "1.png")[0]


def test_line_that_is_no_text_is_named_and_the_others_are_predicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"import os\n\xff\xfe\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    data = jb.load("pymodule_bert").data
    good, bad = inputs_of_lines(data)
    assert good.read()["lengths"] == len("import os")
    with pytest.raises(ValueError, match="the line is not text in UTF-8"):
        bad.read()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"text"])
def test_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(jb.Refused, match=r"x.npz cannot be read as arrays of .npz"):
        arrays_of(str(file))
    with file.open("wb") as opened:
        np.save(opened, np.zeros(3))
    with pytest.raises(jb.Refused, match=r"x.npz cannot be read as arrays of .npz"):
        arrays_of(str(file))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "npz"])
def test_records_of_a_table_are_predicted_as_from_python(
    run: jb.Run, tmp_path: Path, ending: str
) -> None:
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8), dtype=np.uint8)
    records = [{"image": image.tolist()} for image in images]
    file = tmp_path / f"images.{ending}"
    if ending == "npz":
        np.savez(file, image=images)
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = jb.predict(run, file)
    where = "line 1" if ending == "jsonl" else "row 0"
    assert rows[0]["record"] == f"{file} {where}"
    expected = jb.predict(run, records)
    assert [row["top"] for row in rows] == [row["top"] for row in expected]


# -- what the run knows


def test_a_table_is_normalized_and_named_by_the_run_though_its_data_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flowers(tmp_path, np.random.default_rng(0))
    data = jb.data.Columns(
        records=jb.data.Csv(files="flowers.csv", fill=(("width", "0"),), eval_share=0.3),
        inputs=("length", "width"),
        targets="kind",
        shape=(2,),
        classes=3,
        normalize=True,
        batch=8,
    )
    experiment = jb.Experiment(
        model=jb.models.MLP(widths=(8,), outputs=3),
        objective=jb.objectives.Classification(classes=3),
        data=data,
        optimizer=jb.optim.SGD(learning_rate=jb.optim.Constant(peak=0.01)),
        **FEW,
    )
    run = jb.fit(experiment, "runs/flowers")
    right = [row["class"] == row["target"] for row in jb.predict(run, split="eval")]
    assert np.mean(right) == run.metrics["eval/accuracy"]
    Path("new.csv").write_text("length,width\n4.8,9.9\n-1.0,\n")
    rows = jb.predict(run, Path("new.csv"))
    assert {each["class"] for each in rows[0]["top"]} == {"daisy", "iris", "rose"}
    Path("flowers.csv").write_text("length,width,kind\n100,3,aster\n7,-50,zinnia\n")
    assert jb.predict("runs/flowers", "new.csv") == rows
    Path("flowers.csv").unlink()
    assert jb.predict("runs/flowers", ["new.csv"]) == rows
    Path("new.csv").write_text("length,height\n4.8,9.9\n")
    with pytest.raises(jb.Refused, match=r"new.csv row 0 does not fit .* it has no 'width'"):
        jb.predict("runs/flowers", "new.csv")
    with pytest.raises(jb.Refused, match=r"cannot be read|holds a run|no file|there is no"):
        jb.predict("runs/flowers", split="eval")


def test_pictures_have_the_classes_of_the_run_though_its_folder_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, np.random.default_rng(0))
    data = jb.data.Images(
        records=jb.data.ImageFolder(folder="pictures", eval_share=0.3), classes=2, size=8, batch=8
    )
    experiment = jb.Experiment(
        model=jb.models.ConvNet(layers=(jb.models.Dense(8),), classes=2),
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.SGD(learning_rate=jb.optim.Constant(peak=0.01)),
        **FEW,
    )
    jb.fit(experiment, "runs/pictures")
    shutil.copytree("pictures/sea", "new")
    rows = jb.predict("runs/pictures", "new")
    assert {each["class"] for each in rows[0]["top"]} == {"forest", "sea"}
    shutil.copytree("new", "pictures/air")  # it would be the first
    shutil.rmtree("pictures/sea")
    assert jb.predict("runs/pictures", "new") == rows


# -- files that are written


def test_each_kind_of_output_has_the_same_answers(run: jb.Run, drawn: Path, tmp_path: Path) -> None:
    (drawn / "broken.png").unlink()
    rows = jb.predict(run, str(drawn))
    for ending in ("jsonl", "npz", "parquet"):
        words = ["predict", str(run.directory), str(drawn), "--output", f"{tmp_path}/out.{ending}"]
        assert command_line.run(words) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows
    arrays = np.load(tmp_path / "out.npz")
    assert arrays["record"].tolist() == [row["record"] for row in rows]
    assert arrays["class"].tolist() == [row["class"] for row in rows]
    assert arrays["probabilities"].shape == (5, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "drawn", "out.jsonl", "out.npz", "out.parquet",
    ]  # fmt: skip


def test_arrays_of_an_unreadable_record_are_zero_and_its_error_is_named(
    run: jb.Run, drawn: Path, tmp_path: Path
) -> None:
    for ending in ("npz", "parquet"):
        with pytest.raises(jb.Failed, match="1 of 6"):
            words = [str(run.directory), str(drawn), "--output", f"{tmp_path}/out.{ending}"]
            command_line.run(["predict", *words])
    arrays = np.load(tmp_path / "out.npz")
    assert [bool(text) for text in arrays["error"]] == [False] * 5 + [True]
    assert not arrays["probabilities"][5].any() and arrays["probabilities"][:5].any(1).all()
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert table[5]["class"] is None and table[0]["error"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.png"], "there is no file or folder nowhere.png"),
        (["no*.png"], r"nothing matches no\*.png"),
        (["empty"], "the folder empty has no file that ends in .jpg"),
        (["broken.png"], "no record can be read, such as broken.png: it is not a complete image"),
        (["x.csv"], "x.csv row 0 does not fit the run: it has no 'inputs', but a, b"),
        (["blank.jsonl"], "there is nothing to predict"),
        ([], "needs one of files"),
        (["broken.png", "--split", "eval"], "needs one of files"),
        (["--split", "evil"], "split evil: it is train, eval or test"),
        (["--split", "eval", "--top", "0"], "top 0: it must be 1 or more"),
        (["--split", "eval", "--batch", "-2"], "batch -2: it must be 1 or more"),
        (["--text", "seven"], "there is no file or folder seven"),
        (["--split", "eval", "--output", "x.csv"], "x.csv exists|must end in .jsonl, .npz"),
        (["--split", "eval", "--output", "old.npz"], "old.npz exists"),
        (["--split", "eval", "--output", "no/x.npz"], "there is no folder no"),
        (["--split", "eval", "--pictures", "pictures"], "have no picture"),
        (["--split", "eval", "--step", "5"], "of which there are 3, 6"),
        (["broken.png", "--output", "x.npz"], "no record can be read"),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_writes_nothing(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.png").write_bytes(b"no picture")
    Path("x.csv").write_text("a,b\n1,2\n")
    Path("blank.jsonl").write_text("\n")
    Path("old.npz").write_bytes(b"")
    before = sorted(Path().iterdir())
    with pytest.raises(jb.Refused, match=said):
        command_line.run(["predict", str(run.directory), *words])
    assert sorted(Path().iterdir()) == before


def test_an_unwritable_folder_is_refused(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    words = ["predict", str(run.directory), "--split", "eval", "--output", f"{tmp_path}/x.npz"]
    with pytest.raises(jb.Refused, match="cannot be made: Permission denied"):
        command_line.run(words)


# -- your own parts


class Embedding(jb.objectives.Objective):
    """Pulls outputs to the origin; says nothing of what they mean."""

    def __call__(self, forward: nn.Module, batch: Any, key: jax.Array, train: bool) -> Any:
        outputs = forward(batch["inputs"], train=train)
        size = jax.numpy.sum(outputs**2, axis=-1)
        return {"loss": masked(size, batch["mask"])}


def test_an_objective_of_ones_own_predicts_the_outputs_of_the_model(
    tiny: Tiny, tmp_path: Path
) -> None:
    run = jb.fit(tiny(objective=Embedding(), **FEW), tmp_path)
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    rows = jb.predict(run, images)
    outputs = np.array([row["outputs"] for row in rows], np.float32)
    assert np.array_equal(outputs, jb.apply(run, images))


@pytest.mark.slow
def test_a_command_takes_own_classes_from_the_file_of_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    experiment = jb.load("mine.py")
    run = jb.fit(experiment, "runs/mine")
    with pytest.raises(jb.Refused, match=r"not ship its Mine; give its file, as --experiment mine"):
        command_line.run(["predict", "runs/mine", "--split", "eval"])
    Path("new.jsonl").write_text(json.dumps({"image": np.zeros((8, 8)).tolist()}) + "\n")
    rows = command(capsys, "runs/mine", "new.jsonl", "--experiment", "mine.py")
    assert rows == command(capsys, "mine.py", "new.jsonl") == jb.predict(run, "new.jsonl")


OWN = """
import dataclasses

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class Mine(jb.objectives.Classification):
    def describe(self, found, words, *, top):
        return {"answer": super().describe(found, words, top=top)["class"]}


def config():
    model = jb.models.ConvNet(layers=(jb.models.Dense(16),), classes=10)
    parent = jb.load("digits_convnet").replace(model=model, objective=Mine(classes=10))
    return parent.replace(steps=2, evaluate_every=2, checkpoint_every=2)
"""


def test_a_mask_token_is_read_where_its_name_stands_in_a_text_to_predict() -> None:
    records = jb.data.Synthetic(texts=("text",))
    data = jb.data.TokenRows(records=records, length=8, batch=2)
    example = data.read_unlabeled({"text": "a<mask>c"})
    assert example["inputs"].tolist() == [97, data.mask_token, 99, 0, 0, 0, 0, 0]
    assert example["lengths"] == 4 and example["mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    plain = {"text": "a text that is cut"}
    assert str(data.read_unlabeled(plain)) == str(data.read(plain))
