"""JPEG files as pixels, scaled while they are decoded.

With the extra `images` libjpeg-turbo decodes and OpenCV scales, in less than half of the time that Pillow takes, which
does both otherwise. Their pixels differ by a grey level or two, so `decoder` is part of a data set's identity.
"""

import functools
import io
import threading
from typing import Any

import numpy as np

from jaxbig.data.transforms.pixels import ORIENTATION, Levels, decoding, plain

HEADERS = 2**17
"""Bytes at a file's beginning in which its headers are sought."""


def decode(data: bytes, side: int, longer: bool = False, levels: Levels = None) -> np.ndarray:
    """uint8 [Y, X, 3] of an image's file: the whole image, its shorter side (or its longer one) `side` pixels, or all
    it has if it has fewer. Raises ValueError if it is no image, or not all of one.

    Where half of the pixels a side or fewer are needed, libjpeg-turbo decodes to the least n/8 of the size that is
    enough, by a smaller inverse DCT of each block. What remains is less than a half, which bilinear interpolation does.
    What libjpeg-turbo does not decode cleanly (CMYK, a warning, another format) or as it is to be seen (turned),
    Pillow decides on.
    """
    if fast() is None or turned(data):
        return by_pillow(data, side, longer, levels)
    simplejpeg, _ = fast()
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
        if height * width > most_pixels():
            return by_pillow(data, side, longer, levels)  # which refuses it
        high, wide = wanted((height, width), side, longer)
        if 2 * min(high, wide) > min(height, width):
            high, wide = height, width  # 5/8 to 7/8 take longer than the whole
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=high, min_width=wide, buffer=room.of(3 * height * width)
        )
    except ValueError:
        return by_pillow(data, side, longer, levels)
    found = shrunk(pixels, wanted((height, width), side, longer))
    return found.copy() if found is pixels else found  # the room is for the next


def by_pillow(data: bytes, side: int, longer: bool = False, levels: Levels = None) -> np.ndarray:
    """The same of any format that Pillow reads."""
    from PIL import Image  # here: slow to import

    with decoding(), Image.open(io.BytesIO(data)) as picture:
        width, height = whole = picture.size
        lying = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # on its side
        high, wide = wanted((height, width), side, longer)
        picture.draft("RGB", (wide, high))  # a half, a fourth or an eighth, of a JPEG file
        drafted = picture.size != whole
        shown = plain(picture, levels)
        width, height = (whole[::-1] if lying else whole) if drafted else shown.size
        pixels = np.asarray(shown.convert("RGB"))
    return shrunk(pixels, wanted((height, width), side, longer))


def wanted(size: tuple[int, int], side: int, longer: bool) -> tuple[int, int]:
    """The height and width of an image of that size whose shorter side, or longer one, is made `side`; never more than
    it has."""
    scale = min(1.0, side / (max(size) if longer else min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def turned(data: bytes) -> bool:
    """Whether an image's file says that it is to be turned or mirrored."""
    if data.find(b"Exif\0\0", 0, HEADERS) < 0 and data.find(b"tiff:Orientation", 0, HEADERS) < 0:
        return False
    from PIL import Image  # here: slow to import

    with decoding(), Image.open(io.BytesIO(data)) as picture:
        return picture.getexif().get(ORIENTATION, 1) != 1


def most_pixels() -> float:
    """How many pixels an image may have: beyond, Pillow takes it for an attack on the memory."""
    from PIL import Image  # here: slow to import

    return 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))


def shrunk(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [y, x, 3] scaled to a height and a width."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    skips = pixels.shape[0] > 2 * height or pixels.shape[1] > 2 * width
    if fast() is None or skips:  # interpolation would leave pixels out: Pillow averages them
        from PIL import Image  # here: slow to import

        return np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        )
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
    """What decodes and scales, and by which rules (pixels.py)."""
    return f"{'Pillow' if fast() is None else 'libjpeg-turbo and OpenCV'}, upright"


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
