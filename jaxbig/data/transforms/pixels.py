"""Converts images on the host to 8 bits per channel, grayscale or RGB, upright and opaque.

Of a file with several images (GIF, WebP, TIFF) the first is used.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxbig.data.core.fields import MismatchError, kind
from jaxbig.errors import Refused

Levels = tuple[float, float] | None
"""The numbers of black and white; None: as given by the dtype or the file format."""
ORIENTATION = 0x0112
"""The EXIF and TIFF tag for the orientation of an image."""
LEVEL_GUESSES = ((0, 1), (-1, 1), (0, 255), (0, 4095), (0, 65535))
"""Usual black and white levels, proposed in errors."""
DECODE_ERRORS = (OSError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error)
"""What Pillow raises for files that are not an image, or are truncated."""
FORMATS_16_BIT = ("PNG", "PPM")
"""Formats whose 16-bit pixels, 0 to 65535, Pillow may read in its 32-bit mode."""


def eight_bits(image: np.ndarray, levels: Levels = None) -> np.ndarray:
    """Converts numbers [Y, X] or [Y, X, C] to uint8 [Y, X, C].

    Args:
      image: of any numeric dtype.
      levels: the numbers of black and white; not needed for uint8 and bool.

    Raises:
      MismatchError: `levels` is needed but None, or a number is outside of them.
    """
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
    low = float(pixels.min())
    high = float(pixels.max())
    if not np.isfinite([low, high]).all():  # a NaN is both the minimum and the maximum
        raise ValueError("its image has a number that is not finite")
    extent = f"its image is {pixels.dtype} from {low:g} to {high:g}"
    if levels is None:
        fitting = [pair for pair in LEVEL_GUESSES if pair[0] <= low and high <= pair[1]]
        black, white = fitting[0] if fitting else (low, high)
        raise MismatchError(
            f"{extent}, so its black and white levels are unknown: set them, e.g. --data.levels "
            f"{black:g} {white:g}, or save it as uint8 from 0 to 255"
        )
    black, white = levels
    tolerance = abs(white - black) / 510  # half a gray level, which interpolation may add
    if low < min(levels) - tolerance or high > max(levels) + tolerance:
        raise MismatchError(
            f"{extent}, outside of --data.levels {black:g} {white:g}: set levels that contain it"
        )
    shares = np.clip((pixels.astype(np.float64) - black) / (white - black), 0, 1)
    return np.rint(shares * 255).astype(np.uint8)


def from_pixels(pixels: np.ndarray) -> Any:
    """Converts uint8 [Y, X, C], grayscale or RGB and with or without alpha, to a Pillow image."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    channels = pixels.shape[-1]
    if channels > 4:
        hint = ""
        if pixels.shape[0] <= 4:
            hint = "; its channels come first: move them last (numpy.moveaxis)"
        raise MismatchError(
            f"its image has the shape {pixels.shape}, but an image has 1 to 4 channels{hint}"
        )
    plane = pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels)
    return to_8_bits(Image.fromarray(plane))


def to_8_bits(picture: Any, levels: Levels = None) -> Any:
    """Converts a Pillow image to mode L or RGB, upright, transparent parts on white."""
    from PIL import Image, ImageOps

    file_format = picture.format
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "F" or picture.mode[:1] == "I":
        is_16_bit = picture.mode not in ("I", "F")  # I;16, I;16B, ...
        if levels is None and (
            is_16_bit or (picture.mode == "I" and file_format in FORMATS_16_BIT)
        ):
            levels = (0, 65535)
        return Image.fromarray(eight_bits(np.asarray(picture), levels)[..., 0])
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    try:
        return picture if picture.mode == mode else picture.convert(mode)
    except ValueError as error:
        raise ValueError(
            f"its color mode {picture.mode} cannot be converted to RGB: save it as RGB"
        ) from error


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Raises ValueError where Pillow raises an error of its own: no image, or a truncated one."""
    from PIL import Image  # here: slow to import

    try:
        yield
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        reason = str(error).split(" <_io.")[0]  # without the address of the file object
        raise ValueError(f"it is not a complete image: {reason}") from error


def height_width(image: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation is applied."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    from PIL import Image  # here: slow to import, and not every data set needs it

    with Image.open(io.BytesIO(image)) as picture:
        width, height = picture.size
        on_its_side = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if on_its_side else (height, width)


def as_shares(images: np.ndarray) -> np.ndarray:
    """Images as float32 of 0 to 1; raises `Refused` if they are others."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if images.min() < 0 or images.max() > 1:
        raise Refused(
            f"this needs images of 0 to 1, or of 8 bits, and these are {images.dtype} from "
            f"{images.min():g} to {images.max():g}: normalize in the model, or in `transform`."
        )
    return images.astype(np.float32)
