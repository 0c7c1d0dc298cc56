"""Evaluation of a run on worse inputs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.experiments import small
from support.programs import share_programs

import jaxbig as jb
from jaxbig.cli.main import run as command_line
from jaxbig.data.core.dataset import open_split
from jaxbig.data.transforms.pixels import as_shares
from jaxbig.errors import Refused
from jaxbig.objectives.base import cross_entropy
from jaxbig.tools.stress import (
    CHANGES,
    INPUTS,
    Changed,
    Mistyped,
    OpenMistyped,
    Retyped,
    make_attack,
    stress,
)
from jaxbig.train import run as api_run
from jaxbig.train import trainer
from jaxbig.train.run import open_run_split

Tiny = Callable[..., jb.Experiment]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[jb.Run]:
    make = share_programs()
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainer, api_run):
            patch.setattr(module, "make_program", make)
        folder = tmp_path_factory.mktemp("digits")
        jb.fit(tiny(steps=60, evaluate_every=60, checkpoint_every=60), folder)
        yield jb.restore(folder, for_training=False)


def losses(run: jb.Run, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Of each image, without jaxbig's step."""
    return cross_entropy(run.experiment.model.apply(run.variables, images), targets)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacked_images_stay_within_the_radius_and_raise_the_loss(run: jb.Run, name: str) -> None:
    radius = 8 / 255
    with run.program.activate():
        state: Any = run.program.merged(run.state)
    attack = make_attack(run.program, state, CHANGES[name].steps)
    source = open_run_split(run, "eval")
    batch = run.experiment.data.batch
    rows = source.rows(np.arange(batch))
    of = Changed(source, CHANGES[name], 8.0, seed=3, attack=attack)
    worse = of.rows(np.arange(batch))["inputs"]
    clean = rows["inputs"]
    assert np.abs(worse - clean).max() <= radius + 1e-6 and 0 <= worse.min() <= worse.max() <= 1
    before = losses(run, clean, rows["targets"])
    gradient = jax.grad(lambda x: losses(run, x, rows["targets"]).sum())(jnp.asarray(clean))
    one_step = np.clip(clean + radius * np.sign(gradient), 0, 1)
    if name == "fgsm":
        np.testing.assert_allclose(worse, one_step, atol=1e-6)
    else:
        assert losses(run, worse, rows["targets"]).mean() >= (
            losses(run, jnp.asarray(one_step), rows["targets"]).mean() - 1e-3
        )
    assert losses(run, worse, rows["targets"]).mean() > before.mean() + 0.01
    others = of.rows(np.arange(batch)[::-1])["inputs"][::-1]
    np.testing.assert_array_equal(worse, others)  # each example draws for itself


def test_command_prints_a_row_for_each_change_and_draws_them(
    run: jb.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "drawn" / "stress.png"
    words = ["stress", str(run.directory), "--changes", "noise", "contrast", "--picture", picture]
    capsys.readouterr()
    assert command_line([*map(str, words), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["found"][0]["metrics"] == jb.evaluate(run)
    made = [(each["change"], each["strength"]) for each in printed["found"][1:]]
    assert made == [(name, s) for name in ("noise", "contrast") for s in CHANGES[name].strengths]
    by_contrast = [row["metrics"]["loss"] for row in printed["found"][6:]]
    assert by_contrast == sorted(by_contrast)
    assert Image.open(picture).width > 700
    assert command_line([*map(str, words), "--batches", "1"]) == 0
    table = capsys.readouterr().out
    (tmp_path / "file").touch()
    few = [*map(str, words[:4]), "--batches", "1", "--picture", str(tmp_path / "file" / "x.png")]
    assert command_line([*few, "--json"]) == 0  # the numbers are not lost
    assert json.loads(capsys.readouterr().out)["picture"] is None
    with pytest.raises(Refused, match=r"--metric f1: the run has .*accuracy"):
        command_line([*map(str, words), "--metric", "f1"])
    assert "of unchanged inputs" in table and " at 0.32" in table


def test_texts_get_typos(tmp_path: Path) -> None:
    texts = [f"{'good' if n % 2 else 'awful'} film number {n}" for n in range(64)]
    lines = [json.dumps({"text": text, "label": n % 2}) for n, text in enumerate(texts)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = jb.data.Sentences(
        records=jb.data.JsonLines(files=str(tmp_path / "train.jsonl")),
        feature="text",
        classes=2,
        length=32,
        batch=8,
    )
    experiment = jb.Experiment(
        model=jb.models.RNN(vocab=data.vocab, classes=2, width=8),
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.Constant(1e-3)),
        steps=1,
        evaluate_every=1,
        checkpoint_every=1,
    )
    run = jb.fit(experiment, tmp_path / "run")
    found = list(stress(run, split="train"))
    assert [each["change"] for each in found] == ["none", *["typos"] * 5]
    assert len({each["metrics"]["loss"] for each in found}) == 6
    with pytest.raises(Refused, match="--changes noise does not fit Sentences: it takes typos"):
        next(stress(run, changes=["noise"]))


def test_texts_without_records_are_read_again_with_typos() -> None:
    data = small("pymodule_bert").data
    source = open_split(data, "eval")
    places = np.arange(20)
    rows = source.rows(places)
    same = Retyped(source, data, 0.0, seed=0).rows(places)
    worse = Retyped(source, data, 0.2, seed=0)
    assert len(worse) == len(source)
    for name, values in rows.items():
        np.testing.assert_array_equal(same[name], values)
        assert np.array_equal(worse.rows(places)[name], values) == (name not in INPUTS)
    np.testing.assert_array_equal(
        worse.rows(places[7:8])["inputs"], worse.rows(places)["inputs"][7:8]
    )


def test_typos_of_a_record_depend_on_its_number_alone() -> None:
    class Two(jb.data.Records):
        def open(self, split: str) -> Any:
            return [{"text": "a long text of many words", "label": 1}] * 2

    records = Mistyped(records=Two(), field="text", share=0.2, seed=0)
    one, other = opened = records.open("eval")
    assert isinstance(opened, OpenMistyped) and one["text"] != other["text"]
    assert one == records.open("eval")[0] and one["label"] == 1


def test_what_does_not_fit_is_refused(run: jb.Run) -> None:
    with pytest.raises(Refused, match="--changes fog: it must be one of noise, blur"):
        next(stress(run, changes=["fog"]))
    with pytest.raises(Refused, match="--changes typos does not fit Digits: it takes noise"):
        next(stress(run, changes=["typos"]))
    with pytest.raises(Refused, match="--seed -1: it must be 0 or more"):
        next(stress(run, seed=-1))
    with pytest.raises(Refused, match="float32 from -1 to 1: normalize in the model"):
        as_shares(np.linspace(-1, 1, 9, dtype=np.float32))
