"""Decoding image files: size, content, and invalid files."""

import io
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

pytest.importorskip("simplejpeg")
pytest.importorskip("cv2")

from jaxbig.data.transforms.jpeg import decode

PHOTOGRAPH = Image.fromarray(sklearn.datasets.load_sample_image("china.jpg"))  # 640 x 427


def file(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    picture = PHOTOGRAPH.resize((width, height), Image.Resampling.LANCZOS).convert(mode)
    picture.save(data, options.pop("format", "JPEG"), **{"quality": 95, **options})
    return data.getvalue()


def by_pillow(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Second implementation: resizes the full image with antialiasing."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("width", "height", "shorter", "expected"),
    [
        (500, 375, 224, (224, 299)),
        (375, 500, 224, (299, 224)),
        (640, 427, 224, (224, 336)),
        (640, 427, 100, (100, 150)),
        (640, 427, 7, (7, 10)),
        (300, 256, 224, (224, 262)),
        (300, 224, 224, (224, 300)),
        (299, 224, 300, (224, 299)),  # all it has
        (640, 1, 50, (1, 640)),
    ],
)
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "PNG"])
def test_shorter_side_is_scaled_and_content_is_the_same(
    width: int, height: int, shorter: int, expected: tuple[int, int], kind: str
) -> None:
    data = file(width, height, format="PNG") if kind == "PNG" else file(width, height, kind)
    found = decode(data, shorter)
    assert (found.shape, found.dtype) == ((*expected, 3), np.uint8)
    difference = found.astype(int) - by_pillow(data, expected)
    assert np.abs(difference).mean() < 6 and np.abs(difference.mean()) < 1.2


def test_image_is_unchanged_when_the_next_is_decoded() -> None:
    first = file(160, 120)
    second = file(160, 120, "L")
    found = decode(first, 120)
    before = found.copy()
    assert not np.array_equal(decode(second, 120), before) and np.array_equal(found, before)


def test_image_at_full_size_equals_the_decoder() -> None:
    data = file(160, 120, quality=90)
    assert (
        np.abs(decode(data, 120).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 2
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        file(200, 150)[:3_000],
        file(200, 150, format="PNG")[:3_000],
        file(200, 150)[:100],
    ],
    ids=["nothing", "text", "half a JPEG", "half a PNG", "a head"],
)
def test_incomplete_image_raises(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a complete image"):
        decode(data, 64)
