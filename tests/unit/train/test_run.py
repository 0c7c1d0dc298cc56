"""Runs in Python: trained, restored, evaluated and applied."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from support.experiments import small

import jaxbig as jb
from jaxbig.train.apply import as_rows, check_model, read_records
from jaxbig.train.evaluate import evaluate_run

Tiny = Callable[..., jb.Experiment]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(shared_programs: None, folder: Path, tiny: Tiny) -> jb.Run:
    return jb.fit(tiny(), folder)


def png(height: int, width: int) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are the same, bit for bit."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))


def test_a_run_has_its_state_metrics_and_history(run: jb.Run, folder: Path) -> None:
    assert run.directory == folder and run.step == 6 and run.finished
    assert int(run.state.step) == 6
    assert run.state.params["layers_0"]["linear"]["kernel"].shape == (64, 16)
    steps, losses = run.curve("train/loss")
    assert steps == [2, 4, 6] and losses[-1] == run.metrics["train/loss"]
    evaluated = [row for row in run.history if row["split"] == "eval"]
    assert run.curve("eval/accuracy") == ([3, 6], [row["accuracy"] for row in evaluated])
    assert repr(run).startswith(f"Run({str(folder)!r}, step 6 of 6, eval/accuracy 0.")


def test_an_unknown_metric_is_refused_with_the_nearest(run: jb.Run) -> None:
    with pytest.raises(jb.Refused, match="no metric 'train/los': it has train/loss"):
        run.curve("train/los")


def test_a_restored_run_is_the_one_that_was_trained(run: jb.Run, folder: Path) -> None:
    again = jb.restore(folder)
    assert again.step == 6 and again.metrics == run.metrics and again.history == run.history
    assert again.experiment == run.experiment
    assert equal(again.state, run.state)


def test_a_step_of_a_run_is_restored_with_its_metrics(run: jb.Run, folder: Path) -> None:
    third = jb.restore(folder, step=3)
    assert third.step == int(third.state.step) == 3 and not third.finished
    accuracies = dict(zip(*run.curve("eval/accuracy"), strict=True))
    assert third.metrics["eval/accuracy"] == accuracies[3]
    best = jb.restore(folder, step="best")
    assert accuracies[best.step] == max(accuracies.values())


def test_what_cannot_be_restored_is_refused(
    tiny: Tiny, run: jb.Run, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(jb.Refused, match="holds no run"):
        jb.restore(tmp_path)
    with pytest.raises(jb.Refused, match="of which there are 3, 6"):
        jb.restore(folder, step=5)
    wider = jb.models.ConvNet(layers=(jb.models.Dense(32),), classes=10)
    with pytest.raises(jb.Refused, match=r"another experiment.*16 -> 32"):
        jb.restore(folder, experiment=tiny(model=wider))


def test_an_evaluation_in_python_is_that_of_the_command(
    tiny: Tiny, run: jb.Run, folder: Path
) -> None:
    metrics = evaluate_run(tiny(), folder)["metrics"]
    assert jb.evaluate(run) == jb.evaluate(folder) == metrics
    assert metrics["accuracy"] == run.metrics["eval/accuracy"]


def test_outputs_for_arrays_give_the_accuracy_of_the_evaluation(run: jb.Run) -> None:
    source = run.experiment.data.source("eval")
    rows = source.rows(np.arange(len(source)))
    logits = jb.apply(run, rows["inputs"])  # 360 examples, in batches of 16
    assert logits.shape == (360, 10) and isinstance(logits, np.ndarray)
    accuracy = np.mean(logits.argmax(-1) == rows["targets"])
    assert accuracy == pytest.approx(run.metrics["eval/accuracy"])
    loss = -np.mean(jax.nn.log_softmax(logits)[np.arange(360), rows["targets"]])
    assert loss == pytest.approx(run.metrics["eval/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((8, 8, 1)), r"\[8, 8, 1\].*\[N, 8, 8, 1\]; for one example .*\[None\]"),
        (np.zeros((2, 4, 4, 1)), r"\[2, 4, 4, 1\].*\[N, 8, 8, 1\]"),
        (np.zeros((0, 8, 8, 1)), "1 or more"),
        ({"images": np.zeros((2, 8, 8, 1))}, "no field 'images': it has inputs"),
        ({"mask": np.zeros(2)}, r"the field 'inputs' too: give \{'mask': ..., 'inputs': ...\}"),
        ({"inputs": np.zeros((2, 8, 8, 1)), "mask": np.zeros(3)}, "inputs 2, mask 3"),
        ({"inputs": np.zeros((2, 8, 8, 1)), "targets": [0.5, 1]}, "cannot hold its numbers"),
    ],
)
def test_wrong_arrays_are_refused(run: jb.Run, inputs: Any, words: str) -> None:
    with pytest.raises(jb.Refused, match=words):
        jb.apply(run, inputs)


def pictures(**fields: Any) -> jb.data.Images:
    """Images of 8 x 8 pixels of two classes."""
    records = jb.data.Synthetic(images=("image",), labels=(("label", 2),))
    return jb.data.Images(records=records, classes=2, size=8, channels=1, batch=8, **fields)


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (pictures(class_names=("cat", "dog")), {"image": np.zeros((30, 20, 3), np.uint8)}),
        (pictures(canvas=16), {"image": png(40, 20)}),
        (
            jb.data.Masks(records=jb.data.Synthetic(), size=8, classes=2, batch=4),
            {"image": png(40, 20)},
        ),
        (
            jb.data.Columns(
                records=jb.data.Synthetic(),
                inputs=("a", "b"),
                shape=(2,),
                target_shape=(3,),
                batch=4,
            ),
            {"a": 1.0, "b": 2},
        ),
        (
            jb.data.Sentences(records=jb.data.Synthetic(), length=8, classes=2, batch=4),
            {"text": "a fine film"},
        ),
        (
            jb.data.Sounds(records=jb.data.Synthetic(), samples=8, classes=2, batch=4),
            {"audio": np.zeros(5, np.int16)},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_record_without_a_label_is_read_as_in_training(data: Any, record: Any) -> None:
    fields = read_records(data, [record, record])
    rows = as_rows(fields, data.spec())
    assert {name: each.shape[1:] for name, each in rows.items()} == {
        name: each.shape[1:] for name, each in data.spec().items()
    }
    assert len(rows["inputs"]) == 2
    with pytest.raises(jb.Refused, match="record 1: it has no "):
        read_records(data, [record, {}])


def test_outputs_for_records_are_those_for_their_arrays(tiny: Tiny, tmp_path: Path) -> None:
    model = jb.models.ConvNet(layers=(jb.models.Dense(4),), classes=2)
    loss = jb.objectives.Classification(classes=2)
    run = jb.fit(tiny(data=pictures(), model=model, objective=loss, steps=1), tmp_path)
    sizes = [(8, 8), (30, 20), (9, 50), (8, 8), (100, 100)]
    records = [{"image": png(*size)} for size in sizes]
    data: Any = run.experiment.data
    arrays = np.stack([data.read({**each, "label": 0})["inputs"] for each in records])
    assert np.array_equal(jb.apply(run, records), jb.apply(run, arrays))
    record = (
        r"or give records of any size, as in jb.apply\(run, \[\{'image': path.read_bytes\(\)\}\]\)"
    )
    for wrong, words in (
        (np.zeros((2, 30, 20, 1)), record),
        (["a.png", "b.png"], f"text, such as 'a.png', and no array of numbers; {record}"),
        ([Path("a.png")], "text, such as 'a.png'"),
        ([np.zeros((8, 8, 1)), np.zeros((9, 9, 1))], f"different shapes; {record}"),
        (np.full((1, 8, 8, 1), 0.5), r"0.5 to 0.5; give 0 to 255 as uint8"),
        ([{"image": b"no image"}], "record 0: it is not a complete image"),
        (
            [{"image": Path("a.png")}],
            r"its 'image' is PosixPath 'a.png': .* bytes, as Path\(...\).read_bytes",
        ),
    ):
        with pytest.raises(jb.Refused, match=words):
            jb.apply(run, wrong)


def test_records_for_data_without_any_are_refused(run: jb.Run) -> None:
    with pytest.raises(jb.Refused, match="Digits reads no records: give arrays"):
        jb.apply(run, [{"image": b""}])


@pytest.mark.parametrize(
    "call", [lambda e: jb.fit(e, "gs://b/x"), lambda e: jb.restore("s3://b/x")]
)
def test_a_url_is_no_folder(
    call: Callable[[jb.Experiment], jb.Run],
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jb.Refused, match=r"directory (gs|s3)://b/x: .*mount the bucket"):
        call(tiny())
    assert not list(tmp_path.iterdir())


def test_a_name_in_place_of_an_experiment_is_refused(tmp_path: Path) -> None:
    name: Any = "digits_convnet"
    with pytest.raises(TypeError, match=r"jb\.load"):
        jb.fit(name, tmp_path)


def test_a_run_continues_to_more_steps(tiny: Tiny, run: jb.Run, tmp_path: Path) -> None:
    jb.fit(tiny(steps=3), tmp_path)
    longer = jb.fit(tiny(), tmp_path)
    assert longer.step == 6 and longer.curve("train/loss")[0][-1] == 6


def test_a_run_trains_for_epochs_and_goes_back_to_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    experiment.data.prepare()
    epoch = len(experiment.data.source("train")) / experiment.data.batch
    assert jb.fit(experiment, tmp_path, epochs=6 / epoch).step in (6, 7)  # rounded up
    again = jb.fit(experiment, tmp_path, resume_from=3)
    assert again.step == 6 and (tmp_path / "rewound_1" / "checkpoints").is_dir()
    with pytest.raises(jb.Refused, match="resume_from goes back in a run, and fork starts another"):
        jb.fit(experiment, tmp_path, resume_from="best", fork=True)


class Own(nn.Module):
    """A model that jaxbig does not ship."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_run_of_an_own_class_is_restored_with_its_experiment(tiny: Tiny, tmp_path: Path) -> None:
    run = jb.fit(tiny(model=Own(), steps=1), tmp_path)
    with pytest.raises(jb.Refused, match=r"does not ship its Own; give it as restore\("):
        jb.restore(tmp_path)
    again = jb.restore(tmp_path, experiment=run.experiment)
    assert equal(again.state.params, run.state.params)
    with pytest.raises(jb.Refused, match="jaxbig plan FILE"):
        jb.plan(run.experiment, "h100:8")


def test_a_run_on_a_mesh_that_is_not_here_is_restored_on_what_is(
    tiny: Tiny, run: jb.Run, folder: Path
) -> None:
    elsewhere = tiny(mesh=jb.Mesh(data=1000))
    again = jb.restore(folder, experiment=elsewhere)
    assert again.experiment.mesh == jb.Mesh() and equal(again.state, run.state)


def test_text_needs_its_lengths_and_no_targets() -> None:
    spec = small("pymodule_bert").data.spec()
    tokens = np.zeros((3, *spec["inputs"].shape[1:]), np.int64)
    with pytest.raises(jb.Refused, match=r"'lengths' too: give \{'inputs': ..., 'lengths': ...\}"):
        as_rows({"inputs": tokens}, spec)
    rows = as_rows({"inputs": tokens, "lengths": [32, 5, 1]}, spec)
    assert {name: each.dtype for name, each in rows.items()} == {
        name: each.dtype for name, each in spec.items()
    }
    assert rows["mask"].tolist() == [1, 1, 1] and rows["targets"].tolist() == [0, 0, 0]


def test_a_translator_is_called_by_itself() -> None:
    with pytest.raises(jb.Refused, match="takes 'previous' besides its inputs"):
        check_model(small("dates_seq2seq").model)
    check_model(Own())
