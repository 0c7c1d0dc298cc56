"""`train --smoke` of what ships, and of what is not here."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.compiling import HASTY

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.pytext import PyText, PyTextRows
from jaxbig.data.core.dataset import Record, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import Tokens
from jaxbig.evaluators.samples import Samples
from jaxbig.models.rnn import RNN
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import Constant
from jaxbig.tools.smoke_test import smoke

# of each kind of data: images, sounds, labelled texts, a text, masked texts, pairs of texts
NAMES = [
    "imagenet_vit_s16",
    "speech_commands_conv",
    "imdb_attention_rnn",
    "c4_mixtral_8x7b",
    "wikipedia_bert_base",
    "wmt14_transformer_base",
]
LINES = Tokens(records=Synthetic(texts=("text",)), batch=4, length=100)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_experiment_takes_real_steps_without_its_data(
    name: str, jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    here = {"TFDS_DATA_DIR": str(tmp_path / "data"), "JAXBIG_CACHE": str(tmp_path / "cache")}
    done = jaxbig("train", name, "--smoke", "--json", **here, **HASTY)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["step"] == 2 and summary["metrics"]["eval/loss"] > 0
    assert "synthetic records" in done.stderr
    run = tmp_path / "runs" / f"{name}-smoke"
    kept = json.loads((run / "run.json").read_text())["experiment"]["data"].get("tokenizer", {})
    assert (run / "tokenizer.json").exists() == ("BytePairs" in str(kept))


def test_images_are_smaller_unless_the_model_takes_one_size_alone() -> None:
    experiment = load("imagenet_vit_s16")
    assert smoke(experiment).data.size == 96  # type: ignore[attr-defined]
    of_14 = experiment.replace(**{"model.patch": 14})
    assert smoke(of_14).data.size == 224  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_smoke_test_needs_no_other_run() -> None:
    assert load("digits_diffusion").evaluators[0].evaluator != Samples()
    assert smoke(load("digits_diffusion")).evaluators[0].evaluator == Samples()


@pytest.mark.slow
def test_embedded_data_is_its_own_and_a_smoke_test_replaces_nothing_but_its_like(
    jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    for _ in range(2):
        done = jaxbig("train", "digits_convnet", "--smoke")
        assert done.returncode == 0 and "synthetic" not in done.stdout + done.stderr, done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    done = jaxbig("train", "digits_convnet", "--smoke", "--workdir", "mine")
    assert done.returncode == 2 and "mine holds something else" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenArrays(Examples):
    """Rows of token numbers of one length, as keras.datasets gives them."""

    length: int
    vocab: int = 50
    classes: int = 3

    def spec(self) -> Spec:
        tokens = jax.ShapeDtypeStruct((self.batch, self.length), np.int32)
        numbers = jax.ShapeDtypeStruct((self.batch,), np.int32)
        mask = jax.ShapeDtypeStruct((self.batch,), np.float32)
        return {"inputs": tokens, "lengths": numbers, "targets": numbers, "mask": mask}

    def read(self, record: Record) -> Example:
        tokens = record["inputs"].astype(np.int32)
        return {
            "inputs": tokens,
            "lengths": np.int32(100),
            "targets": np.int32(record["y"]),
            "mask": np.float32(1),
        }


@pytest.mark.parametrize("length", [40, 100])
def test_rows_of_a_length_of_their_own_are_not_cut(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "tokens.npz", inputs=np.ones((60, length), np.int32), y=np.arange(60) % 3)
    data = TokenArrays(
        records=Arrays(file=str(tmp_path / "tokens.npz"), eval_share=0.2), batch=8, length=length
    )
    model = RNN(vocab=50, embedding=4, width=8, layers=1, classes=3)
    every = {"steps": 9, "evaluate_every": 9, "checkpoint_every": 9}
    objective = Classification(classes=3)
    optimizer = Adam(learning_rate=Constant(1e-3))
    small = smoke(
        Experiment(model=model, objective=objective, data=data, optimizer=optimizer, **every)
    )
    batch = train_batch(small.data.source("train"), 0, seed=0, batch=small.data.batch)
    assert batch["inputs"].shape == small.data.spec()["inputs"].shape == (8, length)


@pytest.mark.parametrize(
    "data", [PyText(batch=4, length=256), PyTextRows(batch=4, length=30), LINES], ids=repr
)
def test_texts_that_are_cut_anyway_are_cut_shorter(data: Any) -> None:
    assert data.cuts_to_length and dataclasses.replace(data, length=16).spec()["inputs"].shape == (
        4,
        16,
    )
    made = data.synthetic() if isinstance(data, Tokens) else None
    rows = (
        made.source("train").rows(np.arange(4)) if made else {"inputs": np.zeros((4, data.length))}
    )
    assert rows["inputs"].shape == (4, data.length)
