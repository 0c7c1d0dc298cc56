"""Pictures of every kind as 8 bits a pixel: grey or in colours, upright, opaque.

Of a file with several pictures (GIF, WebP, TIFF) it is the first.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxbig.data.core.fields import MismatchError, kind

Levels = tuple[float, float] | None
"""Which numbers are black and white; None: as the dtype or the file's format says."""
ORIENTATION = 0x0112
"""The tag of EXIF and TIFF that says how a picture is to be turned."""
GUESSES = ((0, 1), (-1, 1), (0, 255), (0, 4095), (0, 65535))
BROKEN = (OSError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error)
"""What Pillow raises of files that are no whole images."""
DEEP = ("PNG", "PPM")
"""Formats in which 16 bits may come in Pillow's mode of 32, from 0 to 65535."""


def eight_bits(image: np.ndarray, levels: Levels = None) -> np.ndarray:
    """Numbers [Y, X] or [Y, X, C] as uint8 [Y, X, C]; `MismatchError` where it is not said what is black and white, or a
    number lies beyond. uint8 says it by itself, and so does bool."""
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise MismatchError(
            f"its image has the shape {image.shape}, and not [rows, columns, channels]"
        )
    if levels is None and pixels.dtype == np.uint8:
        return pixels
    if levels is None and pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "biuf":
        raise MismatchError(f"its image is {kind(image)}, and not of numbers")
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():  # NaN is the least and the greatest where there is one
        raise ValueError("its image has a number that is not finite")
    extent = f"its image is {pixels.dtype} from {low:g} to {high:g}"
    if levels is None:
        first, last = next(
            (pair for pair in GUESSES if pair[0] <= low and high <= pair[1]), (low, high)
        )
        raise MismatchError(
            f"{extent}, which does not say what is black and what is white: say it, as in --data.levels {first:g} "
            f"{last:g}, or save it as uint8 from 0 to 255"
        )
    black, white = levels
    half = abs(white - black) / 510  # of a level of grey: what interpolation may add
    if low < min(levels) - half or high > max(levels) + half:
        raise MismatchError(
            f"{extent}, beyond --data.levels {black:g} {white:g}: give levels that it stays within"
        )
    return np.rint(
        np.clip((pixels.astype(np.float64) - black) / (white - black), 0, 1) * 255
    ).astype(np.uint8)


def picture_of(pixels: np.ndarray) -> Any:
    """uint8 [Y, X, C] of 1 to 4 channels (grey, or colours, and alpha) as a Pillow image."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    count = pixels.shape[-1]
    if count > 4:
        last = (
            "; its channels come first: move them last (numpy.moveaxis)"
            if pixels.shape[0] <= 4
            else ""
        )
        raise MismatchError(
            f"its image has the shape {pixels.shape}, and an image has 1 to 4 channels{last}"
        )
    return plain(Image.fromarray(pixels[..., 0] if count == 1 else np.ascontiguousarray(pixels)))


def plain(picture: Any, levels: Levels = None) -> Any:
    """A Pillow image in mode L or RGB: turned as it says, its depth reduced to 8 bits, and on white where it is
    transparent."""
    from PIL import Image, ImageOps

    named = picture.format
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "F" or picture.mode[:1] == "I":
        deep = picture.mode != "I" and picture.mode != "F"  # I;16 and its kind
        if levels is None and (deep or (picture.mode == "I" and named in DEEP)):
            levels = (0, 65535)
        return Image.fromarray(eight_bits(np.asarray(picture), levels)[..., 0])
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    wanted = "L" if picture.mode in ("1", "L") else "RGB"
    try:
        return picture if picture.mode == wanted else picture.convert(wanted)
    except ValueError as error:
        raise ValueError(
            f"its colours are {picture.mode}, which cannot be made RGB: save it as RGB"
        ) from error


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """ValueError, with what is wrong, where Pillow finds no image, or not all of one."""
    from PIL import Image  # here: slow to import

    try:
        yield
    except (*BROKEN, Image.DecompressionBombError) as error:
        said = str(error).split(" <_io.")[0]  # the address of what it was read from
        raise ValueError(f"it is no whole image: {said}") from error
