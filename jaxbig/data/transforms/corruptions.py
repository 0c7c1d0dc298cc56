"""Corruptions of inputs, each of a strength: noise, blur, less contrast, JPEG; typos of texts.

They are the kinds of Hendrycks and Dietterich (2019, ImageNet-C), with strengths of their own. An
image is float32 [Y, X, C] of 0 to 1, and stays one.
"""

import io
import string
from typing import Any

import numpy as np

from jaxbig.errors import Refused


def noise(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise on each number; strength: its standard deviation."""
    added = random.normal(0, strength, image.shape)
    return np.clip(image + added, 0, 1).astype(np.float32)


def blur(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """A Gaussian filter; strength: its standard deviation in pixels."""
    from scipy.ndimage import gaussian_filter  # here: slow to import

    return gaussian_filter(image, (strength, strength, 0), mode="nearest")


def contrast(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """All differences from the mean of a channel, less; strength: the share that is lost."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (mean + (1 - strength) * (image - mean)).astype(np.float32)


def jpeg(image: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """JPEG, encoded and decoded; strength: 100 less its quality."""
    from PIL import Image as Pillow  # here: slow to import

    channels = image.shape[2]
    if channels not in (1, 3):
        raise Refused(
            f"an image of {channels} channels cannot be a JPEG: leave --changes jpeg out."
        )
    levels = np.round(255 * image).astype(np.uint8)
    file = io.BytesIO()
    pixels = levels[..., 0] if channels == 1 else levels
    Pillow.fromarray(pixels).save(file, "JPEG", quality=round(100 - strength))
    with Pillow.open(file) as picture:
        return np.asarray(picture, np.float32).reshape(image.shape) / 255


def typos(text: Any, strength: float, random: np.random.Generator) -> str:
    """Typos: letters that are left out, doubled, swapped with the next, or another letter.

    Args:
      text: str, or bytes of UTF-8.
      strength: the share of characters that are mistyped.
      random: draws which and how.
    """
    if isinstance(text, bytes | np.bytes_):
        text = text.decode(errors="replace")
    written: list[str] = []
    rest = list(str(text))
    while rest:
        letter = rest.pop(0)
        if random.random() >= strength:
            written.append(letter)
            continue
        kind = random.integers(4)
        if kind == 1:
            written += [letter, letter]
        elif kind == 2 and rest:
            written += [rest.pop(0), letter]
        elif kind == 3:
            written.append(str(random.choice(list(string.ascii_lowercase))))
    return "".join(written)
