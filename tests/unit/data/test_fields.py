"""Fields of records: each is taken as it is meant, or refused with a fix."""

import decimal
import json
from typing import Any

import numpy as np
import pytest

from jaxbig.data.core.fields import MismatchError, as_bytes, cast, class_of, field, numbers

LABELS: dict[str, tuple[Any, int]] = {
    "int": (2, 2),
    "float, whole": (2.0, 2),
    "true": (True, 1),
    "false": (False, 0),
    "digits": ("2", 2),
    "digits in bytes": (b"2", 2),
    "list of one": ([1], 1),
    "decimal": (decimal.Decimal("2.00"), 2),
    "numpy bool": (np.bool_(True), 1),
    "array [1]": (np.array([2]), 2),
    "array [1, 1]": (np.array([[2]]), 2),
    "array of digits": (np.array("2"), 2),
    **{
        dtype: (np.array(2, dtype), 2)
        for dtype in (
            "i1",
            "i2",
            "i4",
            "i8",
            "u1",
            "u2",
            "u4",
            "u8",
            ">i4",
            "f2",
            "f4",
            "f8",
            ">f8",
        )
    },
}


@pytest.mark.parametrize("name", LABELS)
def test_label_that_is_a_whole_number_is_its_class(name: str) -> None:
    value, expected = LABELS[name]
    found = class_of({"label": value}, "label", 3)
    assert found == expected and found.dtype == np.int32


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "a share": (0.7, "0.7: a class is a whole number of 0 to 2"),
    "above": (2.99, "2.99"),
    "below 0": (-0.5, "-0.5"),
    "NaN": (float("nan"), "nan"),
    "infinite": (float("inf"), "inf"),
    "numpy NaN": (np.float32("nan"), r"nan \(float32\)"),
    "null": (None, "null"),
    "word": ("cat", "'cat'.*this is a word: name the classes with --data.class-names"),
    "word in bytes": (b"cat", "cat.*a word"),
    "word of numpy": (np.array("cat"), "cat.*a word"),
    "digits of another script": ("٣", "a word"),
    "digits with a space": (" 2", "a word"),
    "digits with a line": ("1_0", "a word"),
    "nothing": ("", "a word"),
    "many digits": ("0" * 5000, "a word"),
    "negative": (-1, r"-1, and --data\.classes 3 means 0 to 2.*another split"),
    "from 1": (
        3,
        r"3, and --data\.classes 3 means 0 to 2: give more classes, or number them from 0",
    ),
    "beyond int32": (2**31, r"2147483648, and --data\.classes 3"),
    "beyond int64": (10**40, r"--data\.classes 3"),
    "beyond int32, below": (-(2**70), r"--data\.classes 3"),
    "one-hot": (
        [0, 1, 0],
        r"\[0, 1, 0\].*of a one-hot row it is the index of the 1 \(numpy\.argmax\)",
    ),
    "one-hot array": (np.eye(3)[1], r"float64 of shape \(3,\).*one-hot"),
    "list of nothing": ([], r"\[\]"),
    "list of lists": ([[1]], r"\[\[1\]\]"),
    "object": ({"id": 1}, "{'id': 1}"),
    "complex": (np.complex64(1), "complex64"),
    "date": (np.datetime64(1, "ns"), "datetime64"),
    "duration": (np.timedelta64(1, "ns"), "timedelta64"),
    "decimal": (decimal.Decimal("1.5"), "1.5"),
    "decimal NaN": (decimal.Decimal("NaN"), "NaN"),
    "record of numpy": (np.zeros((), [("a", "i4")]), r"\(0,\)"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_label_that_is_no_class_is_refused(name: str) -> None:
    value, words = BAD_LABELS[name]
    with pytest.raises(ValueError, match=f"its 'label' is .*{words}|its 'label' is {words}"):
        class_of({"label": value}, "label", 3)


@pytest.mark.parametrize("text", ["1", "1.0", "true", '"1"', "[1]"])
def test_label_of_json_that_is_one_is_one(text: str) -> None:
    assert class_of({"label": json.loads(text)}, "label", 3) == 1


def test_field_that_is_not_there_is_named_with_its_option_and_the_nearest() -> None:
    with pytest.raises(
        MismatchError,
        match=r"it has no 'labl', which --data\.label names, but text, label; "
        r"the nearest is label$",
    ):
        field({"text": "a", "label": 1}, "labl", "--data.label")
    with pytest.raises(MismatchError, match=r"it has no 'q', but text, label$"):
        field({"text": "a", "label": 1}, "q")
    with pytest.raises(MismatchError, match="'q', and no class has that name; they are iris, rose"):
        class_of({"kind": "q"}, "kind", 2, names=("iris", "rose"))
    with pytest.raises(MismatchError, match="it has no 'x', and no other field"):
        field({}, "x")


@pytest.mark.parametrize(
    "dtype",
    [
        "?",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
        "g",
        ">i2",
        ">f4",
        ">f8",
    ],
)
def test_features_of_each_dtype_are_the_same_numbers_in_float32(dtype: str) -> None:
    found = numbers({"x": np.array([0, 1, 1], dtype)}, "x")
    assert found.dtype == np.float32 and found.tolist() == [0, 1, 1]


BAD_NUMBERS: dict[str, tuple[Any, str]] = {
    "complex": (np.ones(2, complex), "complex128, and not of numbers"),
    "date": (np.zeros(2, "M8[D]"), "datetime64"),
    "duration": (np.zeros(2, "m8[s]"), "timedelta64"),
    "words": (["a"], "<U1, and not of numbers"),
    "bytes": (b"abc", "S3, and not of numbers"),
    "structure": (np.zeros(2, [("a", "f4")]), "not of numbers"),
    "objects": (np.array([1, None], object), "object, and not of numbers"),
    "null": (None, "null"),
    "a dictionary": ({"a": 1}, "dict, and not of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "no array"),
    "an int beyond 64 bits": (10**30, "int, and not of numbers"),
    "NaN": ([1.0, float("nan")], r"not finite: nan \(number 1\)"),
    "infinite": (np.array([[1, 2], [3, -np.inf]]), r"not finite: -inf \(number 3\)"),
    "beyond float32": (1e39, r"beyond float32: 1e\+39"),
    "decimals": ([decimal.Decimal("1.5"), decimal.Decimal(1)], "object, and not of numbers"),
}


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_features_that_are_no_finite_numbers_are_refused(name: str) -> None:
    value, words = BAD_NUMBERS[name]
    with pytest.raises(ValueError, match=f"its 'x' .*{words}"):
        numbers({"x": value}, "x")


@pytest.mark.parametrize(
    "value", ["é", "é".encode(), np.array("é"), np.str_("é"), np.array("é".encode())]
)
def test_text_of_each_type_is_its_bytes(value: Any) -> None:
    assert as_bytes({"text": value}, "text") == "é".encode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        0.5,
        ["a"],
        {"a": "b"},
        np.array(1),
        np.array(["a"]),
        np.array([97], np.uint8),
        "\ud800",
    ],
)
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"its 'text' is|surrogates not allowed"):
        as_bytes({"text": value}, "text")


CASTS: list[tuple[Any, str]] = [
    (np.int64(7), "int32"),
    (np.array([1.0, 2.0]), "int32"),
    (np.array([True, False]), "int32"),
    (np.array([0.1]), "float32"),
    (np.array([1, 2], np.uint64), "float32"),
    (np.array([np.inf, np.nan]), "float32"),
    ([255, 0], "uint8"),
    (3, "float32"),
]


@pytest.mark.parametrize(("value", "dtype"), CASTS)
def test_cast_that_loses_nothing_but_rounding_is_made(value: Any, dtype: str) -> None:
    found = cast(value, np.dtype(dtype), "x")
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.asarray(value, np.float64), rtol=1e-7)


BAD_CASTS: list[tuple[Any, str, str]] = [
    (2**31, "int32", "int64 from 2147483648 to 2147483648, and int32 cannot hold that"),
    (np.array([0.5]), "int32", "float64 from 0.5 to 0.5, and int32"),
    (np.array([np.nan]), "int32", "int32 cannot hold that"),
    (np.array([256]), "uint8", "from 256 to 256, and uint8"),
    (np.array([-1]), "uint8", "uint8"),
    (np.array([0.25, 0.75]), "uint8", "from 0.25 to 0.75, and uint8"),
    (np.array([1e39]), "float32", "float32 cannot hold that"),
    (np.array(["a"]), "int32", "<U1, and int32"),
    (np.array([1j]), "float32", "complex128"),
    (None, "float32", "NoneType"),
    (np.zeros(1, "M8[D]"), "int32", "datetime64"),
]


@pytest.mark.parametrize(("value", "dtype", "words"), BAD_CASTS)
def test_cast_that_changes_a_number_is_refused(value: Any, dtype: str, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        cast(value, np.dtype(dtype), "x")


@pytest.mark.parametrize(
    ("value", "option", "words"),
    [
        (
            "Oslo",
            "--data.inputs",
            r"text, 'Oslo', .*\(0, 1, \.\.\.\), or leave it out of --data.in",
        ),
        ("Oslo", "--data.targets", "or give the number of different ones as --data.classes"),
        (np.str_("Oslo"), "", r"number it first \(0, 1, \.\.\.\)$"),
        ([1, "Oslo"], "--data.inputs", "is <U.*, and not of numbers$"),
    ],
)
def test_text_among_numbers_is_refused_with_what_to_do(value: Any, option: str, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        numbers({"city": value}, "city", option)
