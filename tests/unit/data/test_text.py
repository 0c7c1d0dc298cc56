"""Text data sets: packed documents do not attend to others; tokenizers are learned once."""

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

SYNTHETIC = Synthetic(texts=("text",), labels=(("label", 2),))


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
    """Two short texts share a row; one that is too long continues in another row."""
    data = packed(b"abc", b"de", b"", b"0123456789")
    rows = data.source("train").rows(np.arange(3))
    assert {name: (each.shape[1:], each.dtype) for name, each in rows.items()} == {
        name: (each.shape[1:], each.dtype) for name, each in data.spec().items()
    }
    long = rows["targets"][:, 0].tolist().index(ord("0"))
    assert rows["targets"][long].tolist() == [*b"01234567"]
    assert rows["inputs"][long].tolist() == [0, *b"0123456"]
    assert rows["segments"][long].tolist() == [1] * 8
    assert rows["positions"][long].tolist() == [*range(8)]
    real = rows["mask"] > 0
    assert sorted(rows["targets"][real].tolist()) == sorted([*b"abc\0", *b"de\0", *b"0123456789\0"])
    assert np.all(rows["inputs"][real & (rows["positions"] == 0)] == 0)  # after an end token
    assert np.all(rows["segments"][~real] == 0)


def test_packed_text_does_not_depend_on_others() -> None:
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
    for other in range(4):  # a change of one text does not affect the other
        changed = {**batch, "inputs": batch["inputs"].at[0, other].set(7)}
        np.testing.assert_array_equal(loss(params, changed)[0, 4:], whole[0, 4:])
        changed = {**batch, "inputs": batch["inputs"].at[0, 4 + other].set(7)}
        np.testing.assert_array_equal(loss(params, changed)[0, :4], whole[0, :4])
    # nor does its position in the row matter
    alone = {name: each[:, 4:] for name, each in batch.items()}
    np.testing.assert_allclose(loss(params, alone), whole[:, 4:], atol=1e-5)


def test_objective_passes_segments_to_the_model() -> None:
    data = packed(b"abc", b"def")
    batch = {
        name: jnp.asarray(each) for name, each in data.source("train").rows(np.array([0])).items()
    }
    model = Decoder(vocab=256, depth=1, width=16, heads=2)
    objective = NextToken(vocab=256)
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


def test_packed_rows_are_deterministic_and_packed_once(cache: Path) -> None:
    data = Tokens(
        records=SYNTHETIC, batch=4, length=32, packed=True, tokenizer=BytePairs(vocab=300)
    )
    identity = data.prepare()
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
    again = dataclasses.replace(data, tokenizer=BytePairs(vocab=300))
    assert again.prepare() == identity
    for read in (
        lambda d: train_batch(d.source("train"), 1000, seed=3, batch=4),
        lambda d: eval_batch(d.source("eval"), 0, batch=4),
    ):
        first = read(data)
        second = read(again)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()} == made
    assert dataclasses.replace(data, tokenizer=BytePairs(vocab=301)).prepare() != identity


def test_bad_text_is_named_or_skipped_when_packing(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one"}\nno json\n{"text": 3}\n{"other": "x"}\n{"text": "two"}\n')
    data = Tokens(
        records=JsonLines(files=str(file), eval_share=0.0), batch=1, length=8, packed=True
    )
    with pytest.raises((Failed, Refused), match=r"texts.jsonl.* line [234]"):
        data.packed_rows(data.records, "train", "a")
    rows = dataclasses.replace(data, skip_bad_records=3).packed_rows(data.records, "train", "b")
    assert rows.header.documents == 2


# -- bad records in cached rows and tokenizers


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
def test_bad_record_is_refused_also_from_the_cache(kind: str, bad: str, tmp_path: Path) -> None:
    """Whether a record may be skipped is checked each time, not only when the cache is filled."""
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:7], bad, *lines[7:]]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    records = JsonLines(files=str(tmp_path / "a.jsonl"), eval_files=str(tmp_path / "b.jsonl"))
    for skip in (0, 3, 0, 1):  # 3 fills the cache that 0 and 1 use
        data = DATA[kind](records, skip_bad_records=skip)
        if skip:
            data.prepare()
            continue
        with pytest.raises((Failed, Refused), match=r"a\.jsonl line 8( |: )"):
            data.prepare()


@pytest.mark.parametrize("kind", DATA)
def test_field_that_no_record_has_is_refused(kind: str) -> None:
    with pytest.raises(
        Refused, match=r"does not fit 12 of 12 records .* it has no 'body', .*but \w+\.$"
    ):
        DATA[kind](Given(texts=tuple(TEXTS)), feature="body").prepare()


def test_rows_are_not_packed_again_when_more_may_be_skipped(cache: Path) -> None:
    data = DATA["packed"](Given(texts=(*TEXTS, None)), skip_bad_records=1)
    data.prepare()
    made = sorted(cache.rglob("*.array_record"))
    dataclasses.replace(data, skip_bad_records=9).prepare()
    assert sorted(cache.rglob("*.array_record")) == made and len(made) == 2


def test_rows_and_tokenizers_depend_on_the_library_version(
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
def test_tokenizer_is_learned_again_for_other_settings(
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


def test_identity_of_packed_texts_includes_their_rows() -> None:
    data = DATA["packed"](Given(texts=tuple(TEXTS)))
    rows = data.packed_rows(data.records, "train", "x")
    assert f"packed: train {rows.identity}, eval 12 documents" in data.prepare()


def test_keep_end_with_packed_is_refused() -> None:
    with pytest.raises(
        Refused, match=r"packed texts are not cut, so --data.keep end has no effect"
    ):
        DATA["packed"](Given(texts=tuple(TEXTS)), keep="end").prepare()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePair(Records):
    """A source of nine bytes, and a target of five."""

    def open(self, split: str) -> list[dict[str, bytes]]:
        return [{"from": b"123456789", "to": b"12345"}]


def test_targets_have_a_length_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "jaxbig")
    data = Pairs(
        records=OnePair(),
        source_feature="from",
        target_feature="to",
        batch=1,
        length=12,
        target_length=4,
    )
    data.prepare()
    assert "1 of 1 sampled texts are longer than --data.target-length 4" in caplog.text
    assert "--data.length" not in caplog.text
    rows = data.source("train").rows(np.array([0]))
    assert rows["inputs"].shape == (1, 12) and rows["targets"].shape == rows["mask"].shape == (1, 4)
    assert rows["targets"][0, -1] == data.end and rows["lengths"] == 10
    assert data.shorter(3).target_length == 3 and data.shorter(8).target_length == 4


def test_cut_and_empty_texts_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "jaxbig")
    given = Given(texts=(b"1234567", b"12345678", b"", b"123456789", b"x"))
    data = Tokens(records=given, batch=2, length=8)
    data.prepare()
    assert (
        "2 of 5 sampled texts are longer than --data.length 8 and are cut; their beginning"
        in caplog.text
    )
    caplog.clear()
    dataclasses.replace(data, length=10).prepare()
    assert not caplog.messages
    for _ in range(2):
        caplog.clear()
        dataclasses.replace(data, packed=True).prepare()
        assert caplog.messages == ["1 empty documents are skipped"] * 2  # of train, and of eval


# -- a mixture


def lettered(root: Path, letter: str, count: int) -> JsonLines:
    lines = [json.dumps({"text": letter * 30 + f"{n:03d}"}) + "\n" for n in range(count)]
    (root / f"{letter}.jsonl").write_text("".join(lines))
    return JsonLines(files=str(root / f"{letter}.jsonl"), eval_share=0.05)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("weights", [(9, 1), (1, 1), (1, 3)])
def test_weights_of_a_mixture_hold_also_when_packed(
    packed: bool, weights: tuple[float, ...], tmp_path: Path
) -> None:
    parts = (lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 900))
    data = Tokens(records=Mixture(parts=parts, weights=weights), batch=32, length=64, packed=packed)
    data.prepare()
    source = data.source("train")
    targets = np.concatenate(
        [train_batch(source, step, seed=0, batch=32)["targets"] for step in range(20)]
    )
    counts = [int((targets == ord(letter)).sum()) for letter in "ab"]
    assert counts[0] / sum(counts) == pytest.approx(weights[0] / sum(weights), abs=0.01)
    assert not packed or not np.any((targets == ord("a")).any(1) & (targets == ord("b")).any(1))


def test_change_of_weights_packs_nothing_again(tmp_path: Path, cache: Path) -> None:
    parts = (lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 200))
    data = Tokens(records=Mixture(parts=parts, weights=(1, 2)), batch=4, length=64, packed=True)
    identity = data.prepare()
    made = sorted(cache.rglob("*.array_record"))
    assert (
        dataclasses.replace(data, records=Mixture(parts=parts, weights=(2, 1))).prepare()
        != identity
    )
    assert sorted(cache.rglob("*.array_record")) == made and len(made) == 4


def test_tokenizer_learns_from_a_mixture_by_its_weights(tmp_path: Path) -> None:
    parts = (lettered(tmp_path, "a", 100), lettered(tmp_path, "b", 900))
    for weights, share in (((9, 1), 0.9), ((1, 9), 0.1)):
        data = Tokens(
            records=Mixture(parts=parts, weights=weights), batch=4, length=64, learned_from=500
        )
        texts = list(data.texts())
        assert len(texts) == 500 and sum(text[:1] == b"a" for text in texts) / 500 == pytest.approx(
            share, abs=0.01
        )


@pytest.mark.slow
def test_tokenizer_is_saved_with_the_run_and_must_not_change(
    jaxbig: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"the {n} of a {n}"}) + "\n" for n in range(60))
    )
    (tmp_path / "mine.py").write_text(
        """import dataclasses
from jaxbig.experiments import pytext_transformer
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


@pytest.mark.parametrize(
    ("keep", "text", "expected"),
    [
        ("beginning", "ab", ["<start>", "a", "b", "<end>"]),
        ("beginning", "abcdef", ["<start>", "a", "b", "c", "d"]),
        ("end", "abcdef", ["<start>", "d", "e", "f", "<end>"]),
    ],
)
def test_start_token_is_the_first_also_of_a_text_that_is_cut(
    keep: Any, text: str, expected: list[str]
) -> None:
    tokenizer = Bytes(specials=("<start>", "<end>"))
    kinds: dict[str, Any] = {"tokenizer": tokenizer, "start_token": True, "keep": keep}
    data = Sentences(batch=1, length=5, classes=2, records=Synthetic(), **kinds)
    row = data.read({"text": text, "label": 1})
    assert data.words(row["inputs"][: row["lengths"]]) == expected


@pytest.mark.parametrize("data", [Sentences, Pairs], ids=lambda kind: kind.__name__)
def test_synthetic_records_have_the_required_fields(data: Any) -> None:
    more = {"classes": 2} if data is Sentences else {"source_feature": "en", "target_feature": "de"}
    few = data(
        records=SYNTHETIC,
        batch=4,
        length=16,
        tokenizer=BytePairs(vocab=290, specials=("<start>", "<end>")),
        **more,
    )
    made = few.synthetic()
    made.prepare()
    batch = train_batch(made.source("train"), 0, seed=0, batch=4)
    assert {name: (each.shape, each.dtype) for name, each in batch.items()} == {
        name: (each.shape, each.dtype) for name, each in made.spec().items()
    }
    assert batch["inputs"].max() < made.vocab
