"""JPEG files as pixels, scaled while they are decoded.

With the extra `images` libjpeg-turbo decodes and OpenCV scales, in less than half of the time that Pillow takes, which
does both otherwise. Their pixels differ by a grey level or two, so `decoder` is part of a data set's identity.
"""

import contextlib
import functools
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np


def decode(data: bytes, shorter: int) -> np.ndarray:
    """uint8 [Y, X, 3] of an image's file: the whole image, its shorter side `shorter` pixels, or all it has if it has
    fewer. Raises ValueError if it is no image, or not all of one.

    Where half of the pixels a side or fewer are needed, libjpeg-turbo decodes to the least n/8 of the size that is
    enough, by a smaller inverse DCT of each block. What remains is less than a half, which bilinear interpolation does.
    What libjpeg-turbo does not decode cleanly (CMYK, a warning, another format), Pillow decides on.
    """
    if fast() is None:
        return by_pillow(data, shorter)
    simplejpeg, _ = fast()
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
        least = min(height, width)
        least = shorter if 2 * shorter <= least else least  # 5/8 to 7/8 take longer than the whole
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=least, min_width=least, buffer=room.of(3 * height * width)
        )
    except ValueError:
        return by_pillow(data, shorter)
    found = shrunk(pixels, (height, width), shorter)
    return found.copy() if found is pixels else found  # the room is for the next


def by_pillow(data: bytes, shorter: int) -> np.ndarray:
    """The same of any format that Pillow reads."""
    from PIL import Image  # here: slow to import

    with decoding(), Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        picture.draft("RGB", (shorter, shorter))  # a half, a fourth or an eighth, of a JPEG file
        pixels = np.asarray(picture.convert("RGB"))
    return shrunk(pixels, (height, width), shorter)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """ValueError, with what is wrong, where Pillow finds no image, or not all of one."""
    try:
        yield
    except (OSError, SyntaxError) as error:  # the latter of a broken PNG file
        said = str(error).split(" <_io.")[0]  # the address of what it was read from
        raise ValueError(f"it is no whole image: {said}") from error


def shrunk(pixels: np.ndarray, size: tuple[int, int], shorter: int) -> np.ndarray:
    """uint8 [y, x, 3] scaled to what an image of that size [2] is with that shorter side, if it is not smaller."""
    scale = min(1.0, shorter / min(size))
    height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if pixels.shape[:2] == (height, width):
        return pixels
    if fast() is None or pixels.shape[0] > 2 * height:  # interpolation would leave pixels out: Pillow averages them
        from PIL import Image  # here: slow to import

        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    _, cv2 = fast()
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


@functools.cache
def fast() -> Any:
    """The libraries simplejpeg, which is libjpeg-turbo, and OpenCV, without threads beside those that call it; None
    where they are not installed."""
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return simplejpeg, cv2


def decoder() -> str:
    """What decodes and scales."""
    return "Pillow" if fast() is None else "libjpeg-turbo and OpenCV"


class Room(threading.local):
    """Memory for the pixels of one image after another, a thread's own: fresh memory is mapped page by page."""

    memory = np.empty(0, np.uint8)

    def of(self, size: int) -> np.ndarray | None:
        """So many bytes; of more than 16 MiB, which would be kept for ever, fresh ones."""
        if size > 2**24:
            return None
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        return self.memory


room = Room()
