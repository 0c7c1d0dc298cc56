"""Tokenizers: encoding, decoding, learning, caching, and invalid files."""

import dataclasses
import functools
import io
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.tokenize.tokenizers import (
    BytePairs,
    Bytes,
    SentencePiece,
    Tokenizer,
    learn_byte_pairs,
)
from jaxbig.errors import Refused

TEXTS = [
    *Path(__file__).read_bytes().splitlines(),
    *["the cat sat on the mat by the öde Wörter".encode()] * 9,
]
PIECE_COUNT = 200
ALL = ("<start>", "<end>", "<pad>", "<mask>")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXBIG_CACHE", str(folder))
    return folder


def no_texts() -> Iterator[bytes]:
    raise AssertionError("the texts are read")


@functools.cache
def piece_file() -> bytes:
    """A small SentencePiece model."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(text.decode() for text in TEXTS),
        model_writer=file,
        vocab_size=PIECE_COUNT,
        pad_id=3,
        control_symbols=["<mask>"],
        minloglevel=2,
    )
    return file.getvalue()


@functools.cache
def learned() -> str:
    return learn_byte_pairs(TEXTS, 300, ALL)


def from_file(folder: Path) -> BytePairs:
    (folder / "file.json").write_text(learned())
    return BytePairs(file=str(folder / "file.json"), vocab=300, specials=ALL)


# -- bytes


def test_bytes_are_tokens_and_special_tokens_follow() -> None:
    """The defaults of the text data sets: <mask> is 256, or <start> and <end> are 256 and 257."""
    assert Bytes().encode("aä").tolist() == [97, 0xC3, 0xA4]
    assert Bytes().encode(b"\0\xff").tolist() == [0, 255]
    assert Bytes().encode("a").dtype == np.int32 and Bytes().encode("").shape == (0,)
    assert (Bytes().vocab, Bytes().end) == (256, 0)
    assert (Bytes(specials=("<mask>",)).vocab, Bytes(specials=("<mask>",)).mask) == (257, 256)
    pairs = Bytes(specials=("<start>", "<end>"))
    assert (pairs.vocab, pairs.start, pairs.end) == (258, 256, 257)
    assert pairs.decode([256, 97, 98, 257]) == "ab"
    assert Bytes(specials=("[MASK]", "</s>")).end == 257  # names of published tokenizers
    assert Bytes(specials=ALL).pad == 258 and Bytes().special("pad") is None


def test_missing_special_token_is_refused_by_name() -> None:
    with pytest.raises(
        Refused, match=r"Bytes has no mask token, but <end>: add one of <mask> \[MASK\] to"
    ):
        _ = Bytes(specials=("<end>",)).mask
    with pytest.raises(
        Refused, match="BytePairs has no start token, but none: add one of <start> <s>"
    ):
        _ = BytePairs(specials=()).start


def test_identity_of_bytes_is_their_settings() -> None:
    assert Bytes().prepare(no_texts) == Bytes().prepare(no_texts)
    assert Bytes().prepare(no_texts) != Bytes(specials=("<end>",)).prepare(no_texts)
    assert Bytes().kept() == {}


# -- encoding and decoding


@given(
    st.one_of(
        st.text(), st.sampled_from(["<end>", "a <mask> b", "the <start>", "\r\n \t\u2028\x00"])
    )
)
@settings(deadline=None)
def test_decoding_inverts_encoding(text: str) -> None:
    """Also for a text that spells a special token, which does not become one."""
    pairs = BytePairs(vocab=300, specials=ALL)
    vars(pairs)["data"] = learned().encode()  # as prepare() does
    for tokenizer in (Bytes(), Bytes(specials=ALL), pairs):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.encode(text.encode()).tolist() == tokens.tolist()
        assert not set(tokens.tolist()) & set(tokenizer.special_tokens.values())
        marked = [*tokenizer.special_tokens.values(), *tokens, *tokenizer.special_tokens.values()]
        assert tokenizer.decode(marked) == text


def test_encode_many_equals_encode(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(piece_file())
    for tokenizer in (
        Bytes(),
        from_file(tmp_path),
        SentencePiece(file=f"{tmp_path}/a.model", vocab=PIECE_COUNT),
    ):
        texts = ["the cat", b"the dog", "", "ö"]
        many = tokenizer.encode_many(texts)
        assert [tokens.tolist() for tokens in many] == [
            tokenizer.encode(text).tolist() for text in texts
        ]
        assert {tokens.dtype for tokens in many} == {np.dtype(np.int32)} and many[2].shape == (0,)


@pytest.mark.parametrize("token", [-1, 300])
def test_invalid_token_is_refused(token: int, tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(piece_file())
    pieces = SentencePiece(file=f"{tmp_path}/a.model", vocab=300)
    for tokenizer in (Bytes(specials=("<s>",) * 44), from_file(tmp_path), pieces):
        with pytest.raises(
            Refused, match=f"token {token} is not one of the 300 of {type(tokenizer).__name__}"
        ):
            tokenizer.decode([1, token])
        assert tokenizer.decode([299]) in ("", tokenizer.decode(np.array([299])))


# -- byte pairs


def test_byte_pairs_by_hand() -> None:
    """In `aaab` twice the pair (a, a) is the most frequent; two more merges make it one token."""
    pairs = BytePairs(vocab=256 + 1 + 3)
    pairs.prepare(lambda: [b"aaab", b"aaab"])
    tokens = pairs.encode("aaab")
    assert len(tokens) == 1 and len(pairs.encode("aab")) == 2
    assert pairs.decode(tokens) == "aaab"
    assert pairs.end == 0 and pairs.token_count() == 260 == pairs.vocab


def test_tokenizer_is_learned_once_for_the_same_texts(cache: Path) -> None:
    pairs = BytePairs(vocab=300)
    identity = pairs.prepare(lambda: TEXTS, "these texts")
    again = BytePairs(vocab=300)
    assert again.prepare(no_texts, "these texts") == identity  # not even read
    assert again.kept() == pairs.kept()
    assert BytePairs(vocab=290).prepare(lambda: TEXTS, "these texts") != identity
    assert BytePairs(vocab=300, specials=ALL).prepare(lambda: TEXTS, "these texts") != identity
    assert len([folder for folder in (cache / "tokenizers").iterdir() if folder.is_dir()]) == 3
    assert BytePairs(vocab=300).prepare(lambda: TEXTS) == identity  # by the digest of the texts
    assert BytePairs(vocab=300).prepare(lambda: TEXTS[:-3]) != identity


def learn_here(_: int) -> str:
    return learn_byte_pairs(TEXTS * 20, 320, ALL)


def test_learned_tokenizer_is_the_same_in_another_process() -> None:
    pairs = BytePairs(vocab=300)
    pairs.prepare(lambda: TEXTS)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        assert set(processes.map(learn_here, range(2))) == {learn_here(0)}
        there = list(processes.map(pairs.encode, ["the cat", "ö"]))
    assert [tokens.tolist() for tokens in there] == [
        pairs.encode(text).tolist() for text in ("the cat", "ö")
    ]


def test_copy_in_a_run_is_a_valid_file(tmp_path: Path) -> None:
    pairs = BytePairs(vocab=300, specials=ALL)
    identity = pairs.prepare(lambda: TEXTS)
    for name, data in pairs.kept().items():
        (tmp_path / name).write_bytes(data)
    kept = dataclasses.replace(pairs, file=f"{tmp_path}/tokenizer.json")
    assert kept.prepare(no_texts) == identity
    assert kept.encode("the öde cat").tolist() == pairs.encode("the öde cat").tolist()
    assert (
        kept.special_tokens
        == pairs.special_tokens
        == {"<start>": 0, "<end>": 1, "<pad>": 2, "<mask>": 3}
    )


def test_file_settings_for_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    file = from_file(tmp_path)
    plain = file.encode("the cat sat").tolist()
    settings = json.loads(learned())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    pad = {"pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>", "pad_to_multiple_of": None}
    settings["padding"] = {"strategy": {"Fixed": 20}, "direction": "Right", **pad}
    Path(file.file).write_text(json.dumps(settings))
    assert dataclasses.replace(file).encode("the cat sat").tolist() == plain


def test_invalid_files_and_settings_are_refused(tmp_path: Path) -> None:
    file = from_file(tmp_path)
    with pytest.raises(
        Refused,
        match=r"file\.json has no token <eos>; its special tokens are <start> <end> <pad> <mask>",
    ):
        dataclasses.replace(file, specials=("<eos>",)).prepare(no_texts)
    with pytest.raises(
        Refused, match=r"file\.json has 300 tokens, more than vocab 299: increase vocab"
    ):
        dataclasses.replace(file, vocab=299).prepare(no_texts)
    assert (
        dataclasses.replace(file, vocab=512).decode([511]) == ""
    )  # the vocab of a model may be padded
    with pytest.raises(Refused, match="vocab 256 is too small for 256 bytes and 1 specials"):
        BytePairs(vocab=256).prepare(lambda: TEXTS)
    with pytest.raises(Refused, match="BytePairs has no file and is not prepared"):
        BytePairs().encode("a")
    for kind in (BytePairs, SentencePiece):
        (tmp_path / "junk").write_text("{")
        with pytest.raises(
            Refused, match=f"tokenizer file .*junk is not a valid {kind.__name__} file: "
        ):
            kind(file=f"{tmp_path}/junk").prepare(no_texts)
        with pytest.raises(Refused, match=r"tokenizer file .*none cannot be read: No such file"):
            kind(file=f"{tmp_path}/none").prepare(no_texts)


def test_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = from_file(tmp_path)
    Path(file.file).write_text(learned() + " ")  # a file that is not cached in memory
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # type: ignore[arg-type]
    tokenizers: list[Tokenizer] = [file, BytePairs(), SentencePiece(file=file.file)]
    for tokenizer in tokenizers:
        with pytest.raises(
            Refused, match=r"needs (tokenizers|sentencepiece), .* pip install 'jaxbig\[text\]'"
        ):
            tokenizer.prepare(lambda: TEXTS)


# -- SentencePiece


def test_sentence_pieces_equal_the_library(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(piece_file())
    tokenizer = SentencePiece(file=f"{tmp_path}/a.model", vocab=PIECE_COUNT)
    assert f"{PIECE_COUNT} tokens (<s> 1, </s> 2, <pad> 3, <mask> 4) sha256:" in tokenizer.prepare(
        no_texts
    )
    reference: Any = sentencepiece.SentencePieceProcessor(model_proto=piece_file())
    assert tokenizer.encode("the cat").tolist() == reference.encode("the cat")
    assert (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask) == (
        1,
        2,
        3,
        reference.piece_to_id("<mask>"),
    )
    assert tokenizer.decode([1, *tokenizer.encode("the cat sat"), 2, 3]) == "the cat sat"
    assert tokenizer.kept() == {"tokenizer.model": piece_file()}
    with pytest.raises(Refused, match=r"a\.model has 200 tokens, more than vocab 199"):
        dataclasses.replace(tokenizer, vocab=199).prepare(no_texts)
