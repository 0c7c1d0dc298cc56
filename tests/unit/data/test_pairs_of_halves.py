"""Views of an image and pairs of texts: what each half is, and that evaluation draws nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.data.builtin import pydoc_pairs
from jaxbig.data.builtin.pydoc_pairs import FunctionPairs, PyPairs
from jaxbig.data.builtin.pydoc_summary import Summaries
from jaxbig.data.images import Images
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import TextPairs
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.data.transforms.augment import Flip, Mixup, ResizedCrop
from jaxbig.data.views import Views
from jaxbig.errors import Refused

FIELDS = {"records": Synthetic(), "batch": 2, "size": 6, "channels": 1, "classes": 3}
BYTES = Bytes(specials=("<start>", "<end>"))


def batch(seed: int = 0) -> dict[str, jax.Array]:
    images = np.random.default_rng(seed).integers(0, 256, (2, 6, 6, 1), np.uint8)
    targets = jnp.array([0, 1])
    return {"inputs": jnp.asarray(images), "targets": targets, "mask": jnp.ones(2)}


def keys(seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), 2)


def test_both_views_are_drawn_in_training() -> None:
    data = Views(augment=(ResizedCrop(),), **FIELDS)
    found = data.transform(batch(), keys(), True)
    again = data.transform(batch(), keys(), True)
    assert found["inputs"].shape == found["other"].shape == (2, 6, 6, 1)
    assert not np.array_equal(found["inputs"], found["other"])
    assert np.array_equal(found["other"], again["other"])
    for name in ("inputs", "other"):
        assert not np.array_equal(found[name], data.transform(batch(), keys(1), True)[name])


def test_in_evaluation_an_image_is_whole_and_its_view_its_own() -> None:
    data = Views(augment=(ResizedCrop(),), **FIELDS)
    found = data.transform(batch(), keys(), False)
    whole = Images(**FIELDS).transform(batch(), keys(), False)
    assert np.array_equal(found["inputs"], whole["inputs"])
    assert not np.array_equal(found["inputs"], found["other"])
    turned = {name: each[::-1] for name, each in batch().items()}
    assert np.array_equal(data.transform(turned, keys(1), False)["other"][::-1], found["other"])


def test_without_augmentation_both_views_are_the_image() -> None:
    found = Views(augment=(Flip(probability=0.0),), **FIELDS).transform(batch(), keys(), True)
    assert np.array_equal(found["inputs"], found["other"])


def test_mixed_views_are_refused() -> None:
    with pytest.raises(Refused, match="cannot be mixed"):
        Views(mix=(Mixup(),), **FIELDS).check_fields()


def test_a_pair_of_texts_has_both_with_their_lengths() -> None:
    data = TextPairs(
        records=Synthetic(),
        batch=1,
        length=6,
        target_length=4,
        source_feature="a",
        target_feature="b",
        tokenizer=BYTES,
    )
    found = data.read({"a": "xyz", "b": "0123456"})
    assert found["inputs"].tolist() == [*b"xyz", BYTES.end, 0, 0] and found["lengths"] == 4
    assert found["other"].tolist() == [*b"012", BYTES.end] and found["other_lengths"] == 4
    assert found["mask"] == 1
    shapes = {name: each.shape[1:] for name, each in data.spec().items()}
    assert shapes == {name: each.shape for name, each in found.items()}
    alone = data.read_unlabeled({"b": "01"})
    assert (alone["lengths"], alone["other_lengths"]) == (1, 3)


def test_functions_and_sentences_are_split_into_the_same_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = {"source": " read file : path", "summary": " read `file_path` of aPath, e.g."}
    monkeypatch.setattr(Summaries, "open", lambda records, split: [pair])
    assert FunctionPairs().open("eval") == [
        {"source": " read file : path", "summary": " read file path of a path e g"}
    ]
    of = PyPairs(batch=1, tokenizer=BYTES)
    example = of.read_unlabeled(of.record_of_text("def read_all(path):\n    return open(path)"))
    assert (
        of.text(example["inputs"][: example["lengths"] - 1]).strip()
        == "read all : path return open"
    )
    assert pydoc_pairs.split_words("") == ""
