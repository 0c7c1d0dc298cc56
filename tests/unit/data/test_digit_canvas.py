"""Digits on paper: where they are, and records that are a function of their number."""

from typing import Any

import numpy as np
import pytest

from jaxbig.constraints import validate
from jaxbig.data.builtin.digit_canvas import DigitCanvas, resized
from jaxbig.data.builtin.digits import Digits
from jaxbig.errors import Refused


def opened(split: str, **changes: int) -> Any:
    canvas = DigitCanvas(**changes)
    Digits(batch=1).prepare()
    return canvas.open(split)


def test_records_are_a_function_of_split_and_number() -> None:
    train = opened("train", train_examples=30)
    again = opened("train", train_examples=9_000)
    held_out = opened("eval", eval_examples=30)
    assert len(train) == 30 == len(list(held_out))
    for index, record in enumerate(train):
        assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
        assert set(np.unique(record["mask"])) <= set(range(11)) and record["mask"].any()
        for name in ("image", "mask"):
            np.testing.assert_array_equal(record[name], again[index][name])
            assert not np.array_equal(record[name], held_out[index][name])
    with pytest.raises(IndexError):
        train[30]


def test_a_digit_alone_is_where_its_mask_says() -> None:
    """Of one digit, ink and paper differ in shade more than paper does."""
    found = 0
    for record in opened("eval", most=1, eval_examples=40):
        gray = record["image"][..., 0].astype(float)
        ink = record["mask"] > 0
        assert len(np.unique(record["mask"])) == 2
        ys, xs = np.nonzero(ink)
        around = np.zeros_like(ink)
        around[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
        found += abs(gray[ink].mean() - gray[around & ~ink].mean()) > 15
    assert found > 35


def test_each_digit_of_a_mask_is_that_of_the_images() -> None:
    """Of one digit as large as the paper the mask is the image's ink."""
    digits = Digits(batch=1).source("eval")
    rows = digits.rows(np.arange(len(digits)))
    side = 16
    inked = {
        (resized((15 * 16 * image[..., 0]).astype(np.uint8), side, side) > 100).tobytes(): label + 1
        for image, label in zip(rows["inputs"], rows["targets"], strict=True)
    }
    records = opened("eval", side=side, smallest=side, largest=side, most=1, eval_examples=30)
    for record in records:
        assert record["mask"].max() == inked[(record["mask"] > 0).tobytes()]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Refused, match="smallest 10, largest 60 and side 32"):
        validate(DigitCanvas(largest=60))
