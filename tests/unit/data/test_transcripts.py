"""Sounds with texts: Morse code by hand, spectrograms of what is heard alone, SpecAugment."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.config.discover import load
from jaxbig.constraints import validate
from jaxbig.data.audio import Transcripts
from jaxbig.data.builtin.morse import ALPHABET, LETTERS, RATE, SAMPLES, Morse, keyed
from jaxbig.data.core.record_random import Numbers
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.data.transforms.spec_augment import SpecAugment
from jaxbig.errors import Refused

few = settings(max_examples=30, deadline=None)
CLEAR = Morse(noise=0.0, fading=0.0)


def small(**changes: Any) -> Transcripts:
    mel = LogMel(sample_rate=RATE, window=64, hop=32, mels=4, lowest=200.0, highest=1000.0)
    fields = {"records": CLEAR, "batch": 2, "samples": SAMPLES, "letters": LETTERS}
    return Transcripts(**{**fields, "alphabet": ALPHABET, "spectrogram": mel, **changes})


# -- Morse code


def test_sos_by_hand() -> None:
    units = "".join("-="[int(down)] for down in keyed("SOS"))
    assert units == "=-=-=---===-===-===---=-=-="


def test_a_word_is_fifty_units_where_it_is_paris() -> None:
    assert len(keyed("PARIS")) + 7 == 50 and len(keyed("PARIS PARIS")) == 2 * 50 - 7
    assert [int(keyed(text).sum()) for text in ("E", "T", "E E")] == [1, 3, 2]


@given(st.text(ALPHABET[1:], min_size=1, max_size=6), st.text(ALPHABET[1:], min_size=1, max_size=6))
@few
def test_two_texts_are_never_keyed_the_same_way(one: str, other: str) -> None:
    assert (one == other) == (keyed(one).tolist() == keyed(other).tolist())


def test_a_clear_sound_is_loud_where_the_key_is_down() -> None:
    record = CLEAR.open("eval")[3]
    units = keyed(record["text"].decode())
    loud = np.abs(record["audio"].astype(float)) > 400
    first, last = np.flatnonzero(loud)[[0, -1]]
    places = first + (np.arange(len(units)) + 0.5) * (last - first) / len(units)
    around = [loud[int(place) - 7 : int(place) + 8].any() for place in places]
    assert around == units.tolist()


def test_records_are_a_function_of_split_and_number_and_fit() -> None:
    morse = Morse()
    train, held_out = (morse.open(split) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (20_000, 500)
    records = [train[index] for index in range(40)]
    for record, again in zip(
        records, (morse.open("train")[index] for index in range(40)), strict=True
    ):
        assert record["text"] == again["text"] and np.array_equal(record["audio"], again["audio"])
        assert record["audio"].dtype == np.int16 and len(record["audio"]) <= SAMPLES
        assert 0 < len(record["text"]) <= LETTERS and {*record["text"].decode()} <= {*ALPHABET}
    texts = {record["text"] for record in records}
    assert len(texts) > 30 and len(texts - {record["text"] for record in held_out}) > 10
    assert {len(text) for text in texts} == {*range(1, LETTERS + 1)}
    assert len({len(record["audio"]) for record in records}) > 20  # speeds differ
    assert morse.prepare() == morse.prepare() != Morse(noise=0.5).prepare()
    few = Morse(eval_examples=3).open("eval")
    assert [record["text"] for record in few] == [held_out[n]["text"] for n in range(3)]
    assert few[-1]["text"] == few[2]["text"]
    with pytest.raises(IndexError):
        few[3]


def test_its_noise_is_white_of_variance_one() -> None:
    noise = Numbers(0, 0).noise(100_000)
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.01)
    assert abs(np.mean(noise[1:] * noise[:-1])) < 0.02 and np.abs(noise).max() <= 2 * 3**0.5


# -- sounds with texts


def test_letters_are_numbered_from_one_and_come_back() -> None:
    data = small(alphabet=" ABC")
    row = data.read({"audio": np.zeros(100, np.int16), "text": b" cab a\n"})
    assert row["targets"].tolist() == [4, 2, 3, 1, 2] + 3 * [0] and row["mask"].sum() == 5
    assert data.text(row["targets"]) == "CAB A" and (data.classes, data.space) == (5, 1)
    assert data.names == ("blank", " ", "A", "B", "C") and row["lengths"] == 100


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"audio": np.zeros(9, np.int16), "text": "A?"}, "its text has '?'"),
        ({"audio": np.zeros(9, np.int16), "text": 9 * "A"}, "9 letters, and --data.letters is 8"),
        ({"audio": np.zeros(9_601, np.int16), "text": "A"}, "9601 samples, and --data.samples"),
        ({"audio": np.zeros(9, np.int16), "text": "  "}, "its text is empty"),
        ({"audio": np.zeros(9, np.int16)}, "no 'text', which --data.text-feature names"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(record: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        small().read(record)


@pytest.mark.parametrize(
    ("alphabet", "says"), [("AAB", "has a letter twice"), ("ab", "in upper case")]
)
def test_an_alphabet_that_no_text_fits_is_refused(alphabet: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        validate(small(alphabet=alphabet))


def test_an_alphabet_without_a_space_has_no_words() -> None:
    assert small(alphabet="AB").space is None and small().space == 1


def test_a_text_that_is_not_in_the_alphabet_does_not_keep_a_sound_from_being_predicted() -> None:
    row = small().read_unlabeled({"audio": np.ones(300, np.int16), "text": "?!"})
    assert row["lengths"] == 300


def test_a_sound_without_a_text_is_read_to_be_predicted() -> None:
    row = small().read_unlabeled({"audio": np.ones(300, np.int16)})
    assert row["lengths"] == 300 and row["inputs"].shape == (SAMPLES,) and row["mask"].all()
    assert {*row} == {*small().spec()}


def test_a_spectrogram_is_of_the_sound_alone() -> None:
    """Each band has mean 0 and variance 1 over its frames, whatever is behind them."""
    data = small()
    rows = [data.read(CLEAR.open("eval")[index]) for index in range(2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    keys = jax.random.split(jax.random.key(0), 2)
    made = data.transform(batch, keys, train=False)
    for row, length in enumerate(batch["lengths"].tolist()):
        frames = (length - 64) // 32 + 1
        assert int(made["lengths"][row]) == frames
        x = np.asarray(made["inputs"][row, :frames, :, 0])
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0), 1, atol=1e-4)
        assert not np.any(made["inputs"][row, frames:])
    # what is behind a sound is silence, but counts in no mean whatever it is
    behind = np.random.default_rng(0).normal(size=batch["inputs"].shape)
    ends = batch["lengths"][:, None] <= np.arange(behind.shape[1])
    noisy = {**batch, "inputs": np.where(ends, behind, batch["inputs"]).astype(np.float32)}
    again = data.transform(noisy, keys, train=False)["inputs"]
    np.testing.assert_allclose(again, made["inputs"], atol=1e-4)
    longer = {**batch, "inputs": np.pad(batch["inputs"], ((0, 0), (0, 640)))}
    again = data.transform(longer, keys, train=False)["inputs"][:, : made["inputs"].shape[1]]
    np.testing.assert_allclose(again, made["inputs"], atol=1e-4)


def test_records_of_synthetic_sounds_are_read() -> None:
    data = load("librispeech_conformer").data.synthetic()  # type: ignore[attr-defined]
    assert isinstance(data.records, Synthetic)
    row = data.source("train").rows(np.arange(2))
    assert {name: each.shape[1:] for name, each in row.items()} == {
        name: each.shape[1:] for name, each in data.spec().items()
    }


# -- SpecAugment


MASKS = SpecAugment(
    frequency_masks=2, frequency_width=3, time_masks=2, time_width=5, time_share=0.5
)


def masked(masks: SpecAugment, length: int, count: int) -> np.ndarray:
    """What is masked of ones, with each of `count` keys, [count, 20, 8]."""
    keys = jax.random.split(jax.random.key(0), count)
    return (
        np.asarray(jax.vmap(lambda key: masks(jnp.ones((20, 8)), jnp.int32(length), key))(keys))
        == 0
    )


def test_masks_depend_on_the_key_alone() -> None:
    x = jnp.ones((3, 20, 8))
    keys = jax.random.split(jax.random.key(1), 3)
    lengths = jnp.full(3, 20)
    whole = jax.vmap(MASKS)(x, lengths, keys)
    alone = jnp.stack([MASKS(*row) for row in zip(x, lengths, keys, strict=True)])
    turned = jax.vmap(MASKS)(x[::-1], lengths, keys[::-1])[::-1]
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole, turned)
    assert not np.array_equal(whole[0], whole[1])


def test_masks_are_whole_bands_and_frames_of_every_width_at_every_place() -> None:
    one = SpecAugment(frequency_masks=1, frequency_width=3, time_masks=1, time_width=5)
    bands: set[Any] = set()
    frames: set[Any] = set()
    for gone in masked(one, 9, 1_000):
        of_bands = gone.all(0)
        of_frames = gone.all(1)
        assert np.array_equal(gone, of_frames[:, None] | of_bands[None]) and not of_frames[9:].any()
        for found, seen in ((of_bands, bands), (of_frames, frames)):
            places = np.flatnonzero(found)
            assert not len(places) or places[-1] - places[0] == len(places) - 1
            seen.add((int(places[0]), len(places)) if len(places) else None)
    assert bands == {None} | {(first, n) for n in (1, 2, 3) for first in range(9 - n)}
    assert frames == {None} | {(first, n) for n in range(1, 6) for first in range(10 - n)}


def test_a_mask_of_frames_is_at_most_a_share_of_the_example() -> None:
    short = SpecAugment(time_masks=1, time_width=5, time_share=0.25)
    assert masked(short, 9, 60).all(2).sum(1).max() == 2
    assert not masked(short, 0, 9).any() and not masked(SpecAugment(), 20, 9).any()


def test_only_training_is_masked() -> None:
    data = small(masks=MASKS)
    batch = {name: np.zeros(each.shape, each.dtype) for name, each in data.spec().items()}
    batch |= {"inputs": np.random.default_rng(0).normal(size=batch["inputs"].shape)}
    batch |= {"lengths": np.full(2, SAMPLES, np.int32)}
    keys = jax.random.split(jax.random.key(0), 2)
    train, plain = (data.transform(batch, keys, train) for train in (True, False))
    changed = np.asarray(train["inputs"] != plain["inputs"])
    assert changed.any() and not np.any(np.asarray(train["inputs"])[changed])
