"""Images of files: their size, what is on them, and what is no image."""

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
    """All pixels, averaged as they should be where they are made fewer: a second implementation."""
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
        (300, 256, 224, (224, 262)),  # not so few pixels that the decoder leaves some out
        (300, 224, 224, (224, 300)),
        (299, 224, 300, (224, 299)),  # all it has
        (640, 1, 50, (1, 640)),
    ],
)
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "PNG"])
def test_the_shorter_side_is_as_asked_and_the_picture_the_same(
    width: int, height: int, shorter: int, expected: tuple[int, int], kind: str
) -> None:
    data = file(width, height, format="PNG") if kind == "PNG" else file(width, height, kind)
    found = decode(data, shorter)
    assert (found.shape, found.dtype) == ((*expected, 3), np.uint8)
    difference = found.astype(int) - by_pillow(data, expected)
    assert np.abs(difference).mean() < 6 and np.abs(difference.mean()) < 1.2


def test_an_image_stays_when_the_next_is_decoded() -> None:
    first, second = file(160, 120), file(160, 120, "L")
    found = decode(first, 120)
    before = found.copy()
    assert not np.array_equal(decode(second, 120), before) and np.array_equal(found, before)


def test_a_size_that_is_not_scaled_is_the_decoders_own() -> None:
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
def test_what_is_not_a_whole_image_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is no whole image"):
        decode(data, 64)
