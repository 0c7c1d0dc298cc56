"""Texts as rows of tokens: packed documents see themselves alone, tokenizers are learned once and kept with a run."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.pipeline.loader import eval_batch, train_batch
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.text import Pairs, Sentences, Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs, Bytes
from jaxbig.errors import Failed, Refused
from jaxbig.models.language_model import Decoder
from jaxbig.objectives.next_token import NextToken

MADE_UP = Synthetic(texts=("text",), labels=(("label", 2),))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Records):
    texts: tuple[Any, ...]

    def open(self, split: str) -> Sequence[Record]:
        return [{"text": text} for text in self.texts]


def packed(*texts: Any, **fields: Any) -> Tokens:
    data = Tokens(records=Given(texts=texts), batch=2, length=8, packed=True, **fields)
    data.prepare()
    return data


def test_packed_texts_by_hand() -> None:
    """Two short ones share a row; one that is too long goes on in the next, and ends with what is left."""
    data = packed(b"abc", b"de", b"", b"0123456789")
    rows = data.source("train").rows(np.arange(3))
    assert {name: (each.shape[1:], each.dtype) for name, each in rows.items()} == {
        name: (each.shape[1:], each.dtype) for name, each in data.spec().items()
    }
    long = rows["targets"][:, 0].tolist().index(ord("0"))
    assert rows["targets"][long].tolist() == [*b"01234567"] and rows["inputs"][long].tolist() == [
        0,
        *b"0123456",
    ]
    assert rows["segments"][long].tolist() == [1] * 8 and rows["positions"][long].tolist() == [
        *range(8)
    ]
    real = rows["mask"] > 0
    assert sorted(rows["targets"][real].tolist()) == sorted([*b"abc\0", *b"de\0", *b"0123456789\0"])
    assert np.all(rows["inputs"][real & (rows["positions"] == 0)] == 0)  # each begins after an end
    assert np.all(rows["segments"][~real] == 0)


def test_a_packed_text_neither_sees_nor_moves_another() -> None:
    data = packed(b"abc", b"def", tokenizer=Bytes(specials=("<end>",)))
    batch = {
        name: jnp.asarray(each) for name, each in data.source("train").rows(np.array([0])).items()
    }
    assert batch["segments"][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    model = Decoder(vocab=data.vocab, depth=2, width=16, heads=2)
    variables = model.init(jax.random.key(0), batch["inputs"])

    def loss(embedded: Any, batch: Any) -> Any:
        def total(params: Any) -> Any:
            logits = model.apply(
                {"params": params}, batch["inputs"], batch["segments"], batch["positions"]
            )
            picked = jnp.take_along_axis(
                jax.nn.log_softmax(logits), batch["targets"][..., None], -1
            )[..., 0]
            return picked * batch["mask"]

        return total(embedded)

    params = jax.tree.map(
        lambda x: getattr(x, "value", x), variables["params"], is_leaf=lambda x: hasattr(x, "value")
    )
    whole = loss(params, batch)
    for other in range(
        4
    ):  # another first text changes nothing of the second, and the other way round
        changed = {**batch, "inputs": batch["inputs"].at[0, other].set(7)}
        np.testing.assert_array_equal(loss(params, changed)[0, 4:], whole[0, 4:])
        changed = {**batch, "inputs": batch["inputs"].at[0, 4 + other].set(7)}
        np.testing.assert_array_equal(loss(params, changed)[0, :4], whole[0, :4])
    alone = {
        name: each[:, 4:] for name, each in batch.items()
    }  # nor does its place in the row matter
    np.testing.assert_allclose(loss(params, alone), whole[:, 4:], atol=1e-5)


def test_the_objective_hands_segments_to_the_model() -> None:
    data = packed(b"abc", b"def")
    batch = {
        name: jnp.asarray(each) for name, each in data.source("train").rows(np.array([0])).items()
    }
    model, objective = Decoder(vocab=256, depth=1, width=16, heads=2), NextToken(vocab=256)
    variables = model.init(jax.random.key(0), batch["inputs"])

    def value(batch: Any) -> float:
        sums = nn_apply(model, objective, variables, batch)
        return float(sums["loss"].mean())

    joined = {**batch, "segments": jnp.ones_like(batch["segments"])}
    assert abs(value(batch) - value(joined)) > 1e-4


def nn_apply(model: Any, objective: Any, variables: Any, batch: Any) -> Any:
    import flax.linen as nn

    return nn.apply(lambda forward: objective(forward, batch, jax.random.key(0), False), model)(
        variables
    )


def test_packed_rows_are_read_the_same_at_any_step_and_made_once(cache: Path) -> None:
    data = Tokens(records=MADE_UP, batch=4, length=32, packed=True, tokenizer=BytePairs(vocab=300))
    identity = data.prepare()
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
    again = dataclasses.replace(data, tokenizer=BytePairs(vocab=300))
    assert again.prepare() == identity
    for read in (
        lambda d: train_batch(d.source("train"), 1000, seed=3, batch=4),
        lambda d: eval_batch(d.source("eval"), 0, batch=4),
    ):
        first, second = read(data), read(again)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()} == made
    assert dataclasses.replace(data, tokenizer=BytePairs(vocab=301)).prepare() != identity


def test_bad_texts_are_named_or_left_out_of_what_is_packed(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one"}\nno json\n{"text": 3}\n{"other": "x"}\n{"text": "two"}\n')
    data = Tokens(
        records=JsonLines(files=str(file), eval_share=0.0), batch=1, length=8, packed=True
    )
    with pytest.raises((Failed, Refused), match=r"texts.jsonl.* line [234]"):
        data.packed_rows(data.records, "train", "a")
    rows = dataclasses.replace(data, skip_bad_records=3).packed_rows(data.records, "train", "b")
    assert rows.header.documents == 2


# -- what cannot be read, in what is kept


TEXTS = [f"the cat number {n} sat on the mat" for n in range(12)]
DATA = {
    "packed": lambda records, **more: Tokens(
        records=records, batch=2, length=16, packed=True, **more
    ),
    "learned": lambda records, **more: Tokens(
        records=records, batch=2, length=16, tokenizer=BytePairs(vocab=270), **more
    ),
    "learned and packed": lambda records, **more: Tokens(
        records=records, batch=2, length=16, packed=True, tokenizer=BytePairs(vocab=270), **more
    ),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("bad", ['{"text": null}', '{"text": "cut off', '{"texts": "a"}', "[1]"])
def test_what_is_kept_is_refused_or_taken_as_what_is_made(
    kind: str, bad: str, tmp_path: Path
) -> None:
    """Whether a record may be left out is asked each time, not only when rows or a tokenizer are made."""
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:7], bad, *lines[7:]]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    records = JsonLines(files=str(tmp_path / "a.jsonl"), eval_files=str(tmp_path / "b.jsonl"))
    for skip in (0, 3, 0, 1):  # 3 makes what 0 and 1 find
        data = DATA[kind](records, skip_bad_records=skip)
        if skip:
            data.prepare()
            continue
        with pytest.raises((Failed, Refused), match=r"a\.jsonl line 8( |: )"):
            data.prepare()


@pytest.mark.parametrize("kind", DATA)
def test_texts_that_no_record_has_are_the_experiment_s_fault(kind: str) -> None:
    with pytest.raises(
        Refused,
        match=r"does not fit 12 of 12 records .* it has no 'body', .* the nearest is text\.",
    ):
        DATA[kind](Given(texts=tuple(TEXTS)), feature="body").prepare()


def test_rows_are_not_packed_again_where_more_may_be_left_out(cache: Path) -> None:
    data = DATA["packed"](Given(texts=(*TEXTS, None)), skip_bad_records=1)
    data.prepare()
    made = sorted(cache.rglob("*.array_record"))
    dataclasses.replace(data, skip_bad_records=9).prepare()
    assert sorted(cache.rglob("*.array_record")) == made and len(made) == 2


def test_rows_and_tokenizers_are_of_the_library_s_version(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DATA["learned and packed"](Given(texts=tuple(TEXTS)))
    data.prepare()

    def count() -> tuple[int, int]:
        return len(list(cache.rglob("*.array_record"))), len(list(cache.rglob("tokenizer.json")))

    assert count() == (2, 1)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    data.prepare()
    assert count() == (4, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"learned_from": 3},
        {"skip_bad_records": 1},
        {"feature": "other"},
        {"repeat": 2},
        {"eval_share": 0.5},
    ],
)
def test_a_tokenizer_is_learned_again_for_other_settings(
    change: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    rows = [json.dumps({"text": text, "other": text.upper()}) + "\n" for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    records = JsonLines(files=str(tmp_path / "a.jsonl"), eval_share=0.3)
    data = DATA["learned"](records)
    data.prepare()
    data.prepare()
    assert len(list(cache.rglob("tokenizer.json"))) == 1
    of_records = {name: value for name, value in change.items() if hasattr(records, name)}
    of_data = {name: value for name, value in change.items() if not hasattr(records, name)}
    DATA["learned"](dataclasses.replace(records, **of_records), **of_data).prepare()
    assert len(list(cache.rglob("tokenizer.json"))) == 2


def test_the_identity_of_packed_texts_is_of_their_rows_too() -> None:
    data = DATA["packed"](Given(texts=tuple(TEXTS)))
    rows = data.packed_rows(data.records, "train", "x")
    assert f"packed: train {rows.identity}, eval 12 documents" in data.prepare()


def test_an_end_that_is_kept_and_packed_rows_are_refused() -> None:
    with pytest.raises(Refused, match=r"packed texts are not cut, so --data.keep end says nothing"):
        DATA["packed"](Given(texts=tuple(TEXTS)), keep="end").prepare()


def test_texts_that_are_cut_or_empty_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "jaxbig")
    given = Given(texts=(b"1234567", b"12345678", b"", b"123456789", b"x"))
    data = Tokens(records=given, batch=2, length=8)
    data.prepare()
    assert (
        "2 of 5 texts that were tried are longer than --data.length 8 and are cut; their beginning"
        in caplog.text
    )
    caplog.clear()
    dataclasses.replace(data, length=10).prepare()
    assert not caplog.messages
    for _ in range(2):
        caplog.clear()
        dataclasses.replace(data, packed=True).prepare()
        assert caplog.messages == ["1 empty documents are left out"] * 2  # of train, and of eval


# -- a mixture


def lettered(root: Path, letter: str, count: int) -> JsonLines:
    lines = [json.dumps({"text": letter * 30 + f"{n:03d}"}) + "\n" for n in range(count)]
    (root / f"{letter}.jsonl").write_text("".join(lines))
    return JsonLines(files=str(root / f"{letter}.jsonl"), eval_share=0.05)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("weights", [(9, 1), (1, 1), (1, 3)])
def test_the_weights_of_a_mixture_hold_however_its_texts_are_laid(
    packed: bool, weights: tuple[float, ...], tmp_path: Path
) -> None:
    parts = lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 900)
    data = Tokens(records=Mixture(parts=parts, weights=weights), batch=32, length=64, packed=packed)
    data.prepare()
    source = data.source("train")
    targets = np.concatenate(
        [train_batch(source, step, seed=0, batch=32)["targets"] for step in range(20)]
    )
    counts = [int((targets == ord(letter)).sum()) for letter in "ab"]
    assert counts[0] / sum(counts) == pytest.approx(weights[0] / sum(weights), abs=0.01)
    assert not packed or not np.any((targets == ord("a")).any(1) & (targets == ord("b")).any(1))


def test_other_weights_pack_nothing_again(tmp_path: Path, cache: Path) -> None:
    parts = lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 200)
    data = Tokens(records=Mixture(parts=parts, weights=(1, 2)), batch=4, length=64, packed=True)
    identity = data.prepare()
    made = sorted(cache.rglob("*.array_record"))
    assert (
        dataclasses.replace(data, records=Mixture(parts=parts, weights=(2, 1))).prepare()
        != identity
    )
    assert sorted(cache.rglob("*.array_record")) == made and len(made) == 4


def test_a_tokenizer_learns_from_a_mixture_as_it_is_drawn(tmp_path: Path) -> None:
    parts = lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 900)
    for weights, share in (((9, 1), 0.9), ((1, 9), 0.1)):
        data = Tokens(
            records=Mixture(parts=parts, weights=weights), batch=4, length=64, learned_from=500
        )
        texts = list(data.texts())
        assert len(texts) == 500 and sum(text[:1] == b"a" for text in texts) / 500 == pytest.approx(
            share, abs=0.01
        )


@pytest.mark.slow
def test_the_tokenizer_is_kept_with_the_run_and_another_is_another_run(
    jaxbig: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"the {n} of a {n}"}) + "\n" for n in range(60))
    )
    (tmp_path / "mine.py").write_text(
        """import dataclasses
from experiments import pytext_transformer
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.text import Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.objectives.next_token import NextToken

def config():
    records = JsonLines(files="texts.jsonl", eval_share=0.2)
    data = Tokens(records=records, tokenizer=BytePairs(vocab=280), batch=4, length=16)
    parent = pytext_transformer.config()
    return dataclasses.replace(parent, data=data, objective=NextToken(vocab=data.vocab), steps=2,
        model=parent.model.clone(vocab=data.vocab, depth=1, width=16, heads=2))
"""
    )
    done = jaxbig("train", "mine.py", "--json", JAXBIG_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "runs" / "mine" / "tokenizer.json").read_text())
    assert len(kept["model"]["vocab"]) <= 280
    assert (
        "BytePairs of"
        in json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["data_identity"]
    )
    from_file = ["--data.tokenizer.file", "runs/mine/tokenizer.json"]
    other = jaxbig("train", "mine.py", "--steps", 3, *from_file, "--json", JAXBIG_CACHE=str(cache))
    assert other.returncode == 2 and "another run" in other.stderr
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"a {n} for {n}"}) + "\n" for n in range(60))
    )
    other = jaxbig("train", "mine.py", "--steps", 3, "--json", JAXBIG_CACHE=str(cache))
    assert other.returncode == 2 and "data_identity" in other.stderr


@pytest.mark.parametrize("data", [Sentences, Pairs], ids=lambda kind: kind.__name__)
def test_made_up_records_have_the_features_that_are_read(data: Any) -> None:
    more = {"classes": 2} if data is Sentences else {"source_feature": "en", "target_feature": "de"}
    few = data(
        records=MADE_UP,
        batch=4,
        length=16,
        tokenizer=BytePairs(vocab=290, specials=("<start>", "<end>")),
        **more,
    )
    made = few.made_up()
    made.prepare()
    batch = train_batch(made.source("train"), 0, seed=0, batch=4)
    assert {name: (each.shape, each.dtype) for name, each in batch.items()} == {
        name: (each.shape, each.dtype) for name, each in made.spec().items()
    }
    assert batch["inputs"].max() < made.vocab
