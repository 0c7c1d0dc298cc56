"""Corruptions of inputs, against their definitions."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxbig.data.transforms.corruptions import blur, contrast, jpeg, noise, typos
from jaxbig.errors import Refused


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


IMAGE = random().uniform(0.3, 0.7, (64, 48, 3)).astype(np.float32)


def test_noise_has_its_standard_deviation() -> None:
    added = noise(IMAGE, 0.05, random(1)) - IMAGE
    np.testing.assert_allclose(added.std(), 0.05, rtol=0.03)
    np.testing.assert_allclose(added.mean(), 0, atol=0.002)


def test_blur_of_a_point_is_a_gaussian_of_that_width() -> None:
    point = np.zeros((33, 33, 1), np.float32)
    point[16, 16] = 1
    distances = np.arange(-16, 17)
    line = np.exp(-(distances**2) / (2 * 2.0**2))
    expected = np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(blur(point, 2.0, random())[..., 0], expected, atol=1e-5)


def test_contrast_keeps_the_mean_and_a_share_of_the_differences() -> None:
    worse = contrast(IMAGE, 0.8, random())
    np.testing.assert_allclose(worse.mean((0, 1)), IMAGE.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(worse.std((0, 1)), 0.2 * IMAGE.std((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_of_that_quality(channels: int) -> None:
    levels = np.round(255 * IMAGE[..., :channels]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if channels == 1 else levels).save(file, "JPEG", quality=20)
    expected = np.asarray(Image.open(file)).reshape(levels.shape) / 255
    np.testing.assert_allclose(jpeg(levels / np.float32(255), 80, random()), expected, atol=1e-6)


def test_an_image_of_two_channels_is_no_jpeg() -> None:
    with pytest.raises(Refused, match="2 channels cannot be a JPEG"):
        jpeg(IMAGE[..., :2], 80, random())


@given(st.text(), st.integers(0, 9))
def test_without_typos_a_text_is_itself_and_bytes_are_as_their_text(text: str, seed: int) -> None:
    text = text.encode(errors="replace").decode()
    assert typos(text, 0.0, random(seed)) == text
    assert typos(text.encode(), 0.3, random(seed)) == typos(text, 0.3, random(seed))


def test_typos_are_the_share_that_was_asked_for() -> None:
    text = "#" * 20_000  # a typo is a letter more, less or other; a swap of equals is not seen
    worse = typos(text, 0.1, random())
    others = sum(letter != "#" for letter in worse)
    np.testing.assert_allclose(others, 0.1 / 4 * len(text), rtol=0.2)
    np.testing.assert_allclose(len(worse), len(text), rtol=0.01)
