"""What a `tokenizer.json` has: its tokens, read without the library."""

import json
from pathlib import Path
from typing import Any

from jaxbig.errors import Refused

FILE = "tokenizer.json"


def read_tokenizer(content: bytes, file: Path) -> dict[str, Any]:
    """The JSON of a tokenizer; `file` is for messages."""
    try:
        found = json.loads(content)
        assert isinstance(found["model"]["vocab"], dict | list)
    except (ValueError, RecursionError, KeyError, TypeError, AssertionError):
        raise Refused(
            f"{file} is no tokenizer: it has no vocab of a model; copy it again."
        ) from None
    return found


def vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The number of each token, special ones included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # of a unigram model, with scores
        vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
    return {**vocab, **{each["content"]: each["id"] for each in added(tokenizer)}}


def added(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens that were added to the model's."""
    return tokenizer.get("added_tokens") or []


def special_names(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The names of the special tokens."""
    return tuple(each["content"] for each in added(tokenizer) if each.get("special"))


def first_difference(one: dict[str, int], other: dict[str, int]) -> str:
    """The first token that two vocabularies number differently, in words; "" if none."""
    names = sorted(one.items() ^ other.items(), key=lambda item: item[1])
    if not names:
        return ""
    number = names[0][1]
    there, here = (
        next((name for name, found in each.items() if found == number), None)
        for each in (one, other)
    )
    return f"token {number} is {there!r} there, {here!r} here"
