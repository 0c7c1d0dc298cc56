"""Decodes image files on the host; JPEG files are downscaled while they are decoded.

With the extra `images`, libjpeg-turbo decodes and OpenCV resizes, in less than half of the time of
Pillow, which does both otherwise. Their pixels differ by a gray level or two, so `decoder` is part
of a data set's identity. A thread keeps a buffer, and OpenCV is set to one thread.
"""

import functools
import io
import threading
from typing import Any

import numpy as np

from jaxbig.data.transforms.pixels import ORIENTATION, Levels, decoding, to_8_bits

HEADERS = 2**17
"""Bytes at the start of a file that are searched for its headers."""


def decode(data: bytes, side: int, longer: bool = False, levels: Levels = None) -> np.ndarray:
    """Decodes an image file, scaled down so that its shorter side has `side` pixels.

    If half of the pixels a side or fewer are needed, libjpeg-turbo decodes at the smallest
    sufficient n/8 of the size, by a smaller inverse DCT of each block. The remaining factor is less
    than 2, for which bilinear interpolation suffices. Pillow decodes what libjpeg-turbo cannot
    decode cleanly (CMYK, a warning, another format) and images with an EXIF orientation.

    Args:
      data: bytes of the file.
      side: wanted pixels of the shorter side; a smaller image keeps its size.
      longer: whether `side` is of the longer side instead.
      levels: which numbers are black and white.

    Returns:
      The whole image, uint8 [Y, X, 3].

    Raises:
      ValueError: it is not an image, or is truncated.
    """
    if fast_libraries() is None or is_rotated(data):
        return decode_by_pillow(data, side, longer, levels)
    simplejpeg, _ = fast_libraries()
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
        if height * width > max_pixels():
            return decode_by_pillow(data, side, longer, levels)  # which raises
        min_height, min_width = scaled_size((height, width), side, longer)
        if 2 * min(min_height, min_width) > min(height, width):
            # decoding at 5/8 to 7/8 takes longer than at full size
            min_height = height
            min_width = width
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=min_height,
            min_width=min_width,
            buffer=buffer.of(3 * height * width),
        )
    except ValueError:
        return decode_by_pillow(data, side, longer, levels)
    resized = downscale(pixels, scaled_size((height, width), side, longer))
    return resized.copy() if resized is pixels else resized  # the next image reuses the buffer


def decode_by_pillow(
    data: bytes, side: int, longer: bool = False, levels: Levels = None
) -> np.ndarray:
    """Like `decode`, for all formats that Pillow reads."""
    from PIL import Image  # here: slow to import

    with decoding(), Image.open(io.BytesIO(data)) as picture:
        full_size = picture.size
        width, height = full_size
        on_its_side = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        draft_height, draft_width = scaled_size((height, width), side, longer)
        # a JPEG file is decoded at a half, a fourth or an eighth
        picture.draft("RGB", (draft_width, draft_height))
        drafted = picture.size != full_size
        upright = to_8_bits(picture, levels)
        if not drafted:
            width, height = upright.size
        elif on_its_side:
            height, width = full_size
        pixels = np.asarray(upright.convert("RGB"))
    return downscale(pixels, scaled_size((height, width), side, longer))


def scaled_size(size: tuple[int, int], side: int, longer: bool) -> tuple[int, int]:
    """Height and width after scaling the shorter (or longer) side down to `side`; never larger."""
    scale = min(1.0, side / (max(size) if longer else min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def is_rotated(data: bytes) -> bool:
    """Whether an image file has an EXIF orientation, to be rotated or mirrored."""
    if data.find(b"Exif\0\0", 0, HEADERS) < 0 and data.find(b"tiff:Orientation", 0, HEADERS) < 0:
        return False
    from PIL import Image  # here: slow to import

    with decoding(), Image.open(io.BytesIO(data)) as picture:
        return picture.getexif().get(ORIENTATION, 1) != 1


def max_pixels() -> float:
    """Pixels above which Pillow refuses an image as a decompression bomb."""
    from PIL import Image  # here: slow to import

    return 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))


def downscale(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [y, x, 3] to (height, width)."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    # below a half, interpolation would skip pixels; Pillow averages them
    skips = pixels.shape[0] > 2 * height or pixels.shape[1] > 2 * width
    if fast_libraries() is None or skips:
        from PIL import Image  # here: slow to import

        return np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        )
    _, cv2 = fast_libraries()
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


@functools.cache
def fast_libraries() -> Any:
    """The modules simplejpeg (libjpeg-turbo) and cv2, single-threaded; None if not installed."""
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return simplejpeg, cv2


def decoder() -> str:
    """Identity of the decoder: its libraries, and the rules of pixels.py."""
    return f"{'Pillow' if fast_libraries() is None else 'libjpeg-turbo and OpenCV'}, upright"


class DecodeBuffer(threading.local):
    """A buffer a thread, reused from image to image: new memory costs page faults."""

    memory = np.empty(0, np.uint8)

    def of(self, size: int) -> np.ndarray | None:
        """`size` bytes to decode into; None above 16 MiB, which would stay allocated forever."""
        if size > 2**24:
            return None
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        return self.memory


buffer = DecodeBuffer()
