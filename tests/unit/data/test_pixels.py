"""Images of every mode, depth and orientation are read correctly, or refused with a reason."""

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxbig.data.core.fields import MismatchError
from jaxbig.data.images import Images, shrink_to_fit
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms import jpeg
from jaxbig.data.transforms.pixels import to_8_bits
from jaxbig.errors import Refused

SIDE = 32
Y, X = np.mgrid[0:SIDE, 0:SIDE]
GRAY = (4 * (X + Y)).astype(np.uint8)  # 0 to 248, brighter to the bottom right
RGB = np.stack([GRAY, 255 - GRAY, GRAY // 2], -1)
ALPHA = np.where(X < 8, 0, np.where(X < 16, 128, 255)).astype(np.uint8)
PALETTE = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [90, 90, 90]], np.uint8)
INDICES = ((X // 8) % 4).astype(np.uint8)  # of the palette
BOTH = pytest.mark.parametrize("decoder", ["turbo", "pillow"])


@pytest.fixture
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "turbo" and jpeg.fast_libraries() is None:
        pytest.skip("simplejpeg and OpenCV are not installed")
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "fast_libraries", lambda: None)
    return request.param


decoders = pytest.mark.parametrize("decoder", ["turbo", "pillow"], indirect=True)


def saved(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def luma(rgb: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601, by hand."""
    return (rgb.astype(np.float64) @ [0.299, 0.587, 0.114])[..., None]


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, -1)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def png(samples: np.ndarray, color_type: int) -> bytes:
    """A PNG of 16 bits a sample, [Y, X, C], written by hand: Pillow cannot write RGB."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def image(pixels: np.ndarray, mode: str = "") -> Any:
    found = Image.fromarray(pixels)
    return found.convert(mode) if mode else found


def palette(**options: Any) -> bytes:
    found = Image.frombytes("P", (SIDE, SIDE), INDICES.tobytes())
    found.putpalette(PALETTE.tobytes())
    return saved(found, "PNG", **options)


def cmyk(kind: str) -> bytes:
    planes = np.stack(
        [255 - RGB[..., 0], 255 - RGB[..., 1], 255 - RGB[..., 2], np.full_like(GRAY, 51)], -1
    )
    return saved(
        Image.frombytes("CMYK", (SIDE, SIDE), planes.tobytes()),
        kind,
        **({"quality": 98} if kind == "JPEG" else {}),
    )


def deep(scale: int) -> np.ndarray:
    return GRAY.astype(np.uint16) * scale


RGBA = np.dstack([RGB, ALPHA])
LA = np.dstack([GRAY, ALPHA])
UNDER_BLACK = RGB * 0.8  # of CMYK with 51 of black: 1 - 51 / 255
FILES: dict[str, tuple[Callable[[], bytes], np.ndarray, float]] = {
    "1": (lambda: saved(image(GRAY > 128), "PNG"), three((GRAY > 128) * 255.0), 0),
    "L png": (lambda: saved(image(GRAY), "PNG"), three(GRAY), 0),
    "L jpeg": (lambda: saved(image(GRAY), "JPEG", quality=98), three(GRAY), 3),
    "L tiff": (lambda: saved(image(GRAY), "TIFF"), three(GRAY), 0),
    "L png, a transparent level": (
        lambda: saved(image(GRAY), "PNG", transparency=0),
        three(np.where(GRAY, GRAY, 255)),
        0,
    ),
    "LA": (lambda: saved(image(LA), "PNG"), on_white(three(GRAY), ALPHA), 1),
    "P": (palette, PALETTE[INDICES], 0),
    "P gif": (lambda: saved(image(RGB).quantize(256), "GIF"), RGB, 12),
    "P, a transparent color": (
        functools.partial(palette, transparency=2),
        np.where(INDICES[..., None] == 2, 255, PALETTE[INDICES]),
        0,
    ),
    "P, alpha a color": (
        functools.partial(palette, transparency=bytes([0, 128, 255, 255])),
        on_white(PALETTE[INDICES], np.array([0, 128, 255, 255])[INDICES]),
        1,
    ),
    "RGB png": (lambda: saved(image(RGB), "PNG"), RGB, 0),
    "RGB jpeg": (lambda: saved(image(RGB), "JPEG", quality=98, subsampling=0), RGB, 6),
    "RGB bmp": (lambda: saved(image(RGB), "BMP"), RGB, 0),
    "RGB tiff": (lambda: saved(image(RGB), "TIFF"), RGB, 0),
    "RGB, a transparent color": (
        lambda: saved(image(RGB), "PNG", transparency=(0, 255, 0)),
        np.where(GRAY[..., None], RGB, 255),
        0,
    ),
    "RGBA png": (lambda: saved(image(RGBA), "PNG"), on_white(RGB, ALPHA), 1),
    "RGBA webp": (
        lambda: saved(image(RGBA), "WEBP", lossless=True, exact=True),
        on_white(RGB, ALPHA),
        1,
    ),
    "RGBA tiff": (lambda: saved(image(RGBA), "TIFF"), on_white(RGB, ALPHA), 1),
    "CMYK jpeg": (functools.partial(cmyk, "JPEG"), UNDER_BLACK, 8),
    "CMYK tiff": (functools.partial(cmyk, "TIFF"), UNDER_BLACK, 2),
    "YCbCr tiff": (lambda: saved(image(RGB, "YCbCr"), "TIFF"), RGB, 3),
    "I;16 png": (lambda: saved(image(deep(257)), "PNG"), three(GRAY), 0),
    "I;16 tiff": (lambda: saved(image(deep(257)), "TIFF"), three(GRAY), 0),
    "I;16B tiff": (
        lambda: saved(
            Image.frombytes("I;16B", (SIDE, SIDE), deep(257).astype(">u2").tobytes()), "TIFF"
        ),
        three(GRAY),
        0,
    ),
    "16 bits PGM": (
        lambda: b"P5 32 32 65535\n" + deep(257).astype(">u2").tobytes(),
        three(GRAY),
        0,
    ),
    "16 bits RGB png": (lambda: png(RGB.astype(np.uint16) * 257, 2), RGB, 0),
    "16 bits RGBA png": (lambda: png(RGBA.astype(np.uint16) * 257, 6), on_white(RGB, ALPHA), 1),
    "16 bits LA png": (lambda: png(LA.astype(np.uint16) * 257, 4), on_white(three(GRAY), ALPHA), 1),
    "GIF of two": (
        lambda: saved(image(GRAY), "GIF", save_all=True, append_images=[image(255 - GRAY)]),
        three(GRAY),
        0,
    ),
    "WebP of two": (
        lambda: saved(
            image(RGB), "WEBP", save_all=True, append_images=[image(255 - RGB)], lossless=True
        ),
        RGB,
        0,
    ),
    "PNG of two": (
        lambda: saved(image(RGB), "PNG", save_all=True, append_images=[image(255 - RGB)]),
        RGB,
        0,
    ),
    "TIFF of two": (
        lambda: saved(image(RGB), "TIFF", save_all=True, append_images=[image(255 - RGB)]),
        RGB,
        0,
    ),
}


def data(**fields: Any) -> Images:
    return Images(**{"records": Synthetic(), "batch": 1, "size": SIDE, "classes": 2, **fields})


def seen(value: Any, **fields: Any) -> np.ndarray:
    return data(**fields).read({"image": value, "label": 1})["inputs"].astype(np.float64)


@decoders
@pytest.mark.parametrize("canvas", [0, SIDE])
@pytest.mark.parametrize("name", FILES)
def test_file_of_each_mode_has_its_colors(name: str, canvas: int, decoder: str) -> None:
    make, expected, apart = FILES[name]
    assert np.abs(seen(make(), canvas=canvas) - expected).max() <= apart
    assert np.abs(seen(make(), canvas=canvas, channels=1) - luma(expected)).max() <= apart + 1


DEEP = {"I": np.int32, "F": np.float32}


@decoders
@pytest.mark.parametrize("mode", DEEP)
def test_file_of_32_bits_needs_levels(mode: str, decoder: str) -> None:
    file = saved(image((deep(10) - 100.0).astype(DEEP[mode])), "TIFF")
    with pytest.raises(
        ValueError, match=r"its image is \w+32 from -100 to 2380, .*--data.levels -100 2380"
    ):
        seen(file)
    assert np.abs(seen(file, levels=(-100, 2450)) - three(GRAY)).max() <= 1
    with pytest.raises(
        ValueError, match=r"its image is \w+32 from -100 to 2380, outside of --data.levels 0 2550"
    ):
        seen(file, levels=(0, 2550))


@decoders
def test_12_bits_in_a_file_of_16_are_scaled_by_levels(decoder: str) -> None:
    file = saved(image(deep(16)), "PNG")
    assert np.abs(seen(file, levels=(0, 4080)) - three(GRAY)).max() <= 0.5


@decoders
def test_lab_is_right_or_refused(decoder: str) -> None:
    plane = np.dstack([np.full((SIDE, SIDE), 128, np.uint8), np.zeros((SIDE, SIDE, 2), np.uint8)])
    file = saved(Image.frombytes("LAB", (SIDE, SIDE), plane.tobytes()), "TIFF")
    try:
        found = seen(file)
    except ValueError as error:
        assert "its color mode LAB" in str(error)
    else:
        assert np.abs(found - 120).max() <= 3  # L* of 50.2 is 120 in sRGB


@pytest.mark.parametrize("mode", ["PA", "HSV", "RGBa", "RGBX", "I;16L", "I;16N"])
def test_empty_image_of_a_rare_mode_is_black_or_white(mode: str) -> None:
    expected = 255 if mode in ("PA", "RGBa") else 0
    assert (np.asarray(to_8_bits(Image.new(mode, (4, 4)))) == expected).all()


# How each EXIF orientation is undone, by its definition (CIPA DC-008, table 6).
UNDONE: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def stored_as(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels to store for an orientation: each but 6 and 8 is its own inverse."""
    return UNDONE[{6: 8, 8: 6}.get(orientation, orientation)](pixels)


@decoders
@pytest.mark.parametrize("canvas", [0, 64, 256])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UNDONE)
def test_image_of_each_orientation_is_upright(
    orientation: int, kind: str, canvas: int, decoder: str
) -> None:
    y, x = np.mgrid[0:150, 0:240]
    upright = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    file = saved(
        image(np.ascontiguousarray(stored_as(upright, orientation))), kind, exif=exif, **lossless
    )
    plain_file = saved(image(upright), "PNG")
    for channels in (1, 3):
        fields = {"canvas": canvas, "channels": channels, "size": 48}
        assert np.abs(seen(file, **fields) - seen(plain_file, **fields)).max() <= 8


@decoders
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("width", "height", "canvas"),
    [
        (1280, 70, 64),
        (1280, 100, 64),
        (640, 7, 64),
        (1000, 3, 64),
        (70, 1280, 64),
        (2000, 180, 128),
        (300, 10, 64),
        (90, 1, 60),
    ],
)
def test_elongated_image_fills_its_canvas_to_the_end(
    width: int, height: int, canvas: int, kind: str, decoder: str
) -> None:
    longer = max(width, height)
    ramp = (np.arange(longer) * 255 // (longer - 1)).astype(np.uint8)
    plane = np.broadcast_to(ramp[None, :] if width > height else ramp[:, None], (height, width))
    file = saved(
        image(np.repeat(plane[..., None], 3, -1)),
        kind,
        **({"quality": 95} if kind == "JPEG" else {}),
    )
    found = shrink_to_fit(file, canvas, 3)
    shorter = max(1, round(min(width, height) * canvas / longer))
    assert found.shape == ((shorter, canvas, 3) if width > height else (canvas, shorter, 3))
    along = found.mean((0, 2) if width > height else (1, 2))
    expected = (np.arange(canvas) + 0.5) / canvas * 255
    assert np.abs(along - expected).max() < 4


ARRAYS: dict[str, tuple[np.ndarray, tuple[float, float] | None]] = {
    "uint8": (RGB, None),
    "uint8 of 0 to 1": ((RGB > 127).astype(np.uint8), (0, 1)),
    "float16 of 0 to 1": ((RGB / 255).astype(np.float16), (0, 1)),
    "float32 of 0 to 1": ((RGB / 255).astype(np.float32), (0, 1)),
    "float64 of 0 to 1": (RGB / 255, (0, 1)),
    "longdouble of 0 to 1": ((RGB / 255).astype(np.longdouble), (0, 1)),
    "float32 of -1 to 1": ((RGB / 127.5 - 1).astype(np.float32), (-1, 1)),
    "float32 of 0 to 255": (RGB.astype(np.float32), (0, 255)),
    "float32, a rounding beyond": ((RGB / 255 * (1 + 1e-6)).astype(np.float32), (0, 1)),
    "int8": ((RGB.astype(int) - 128).astype(np.int8), (-128, 127)),
    "int16": (RGB.astype(np.int16) * 100, (0, 25500)),
    "int32": (RGB.astype(np.int32), (0, 255)),
    "int64": (RGB.astype(np.int64), (0, 255)),
    "uint16": (RGB.astype(np.uint16) * 257, (0, 65535)),
    "uint16 of 12 bits": (RGB.astype(np.uint16) * 16, (0, 4080)),
    "uint32": (RGB.astype(np.uint32), (0, 255)),
    "uint64": (RGB.astype(np.uint64), (0, 255)),
    "big-endian": (RGB.astype(">u2") * 257, (0, 65535)),
    "inverted": (255 - RGB.astype(int), (255, 0)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_of_each_dtype_is_scaled_by_its_levels_and_refused_without(name: str) -> None:
    array, levels = ARRAYS[name]
    expected = (RGB > 127) * 255.0 if name == "uint8 of 0 to 1" else RGB
    apart = 1 if name == "float16 of 0 to 1" else 0
    for canvas in (0, SIDE):
        assert np.abs(seen(array, levels=levels, canvas=canvas) - expected).max() <= apart
    assert (
        np.abs(
            seen(array, levels=levels, size=SIDE // 2)
            - seen(expected.astype(np.uint8), size=SIDE // 2)
        ).max()
        <= 1
    )
    if array.dtype != np.uint8:
        words = rf"its image is {array.dtype} from .* to .*, so its black and .*--data.levels"
        with pytest.raises(MismatchError, match=words.replace("|", r"\|")):
            seen(array)


def test_array_of_bools_is_black_and_white() -> None:
    assert (seen(RGB > 127) == (RGB > 127) * 255.0).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.where(RGB == 0, np.nan, RGB / 255), "not finite"),
        (np.where(RGB == 0, np.inf, RGB / 255), "not finite"),
        (RGB * 1j, "complex128.*a file's bytes, or an array of numbers"),
        (np.zeros((SIDE, SIDE), "M8[D]"), "datetime64"),
        (np.zeros((SIDE, SIDE), "m8[s]"), "timedelta64"),
        (np.full((SIDE, SIDE), "a"), "<U1"),
        (np.full((SIDE, SIDE), None), "object"),
        (np.zeros((SIDE, SIDE), [("r", "u1"), ("g", "u1")]), "'r'"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\).*rows, columns, channels"),
        (np.zeros((2, 5, 5, 3), np.uint8), r"shape \(2, 5, 5, 3\)"),
        (np.moveaxis(RGB, -1, 0), "channels come first: move them last"),
        (np.zeros((5, 5, 7), np.uint8), "1 to 4 channels"),
        ("a.png", "str|<U5"),
        ({"bytes": b""}, "dict"),
        (None, "null"),
        ([[1, 2], [3]], "no array"),
        ([[1, 2], [3, 4]], "int64 from 1 to 4.*--data.levels 0 255"),
        (b"", "not a complete image"),
        (7, r"shape \(\)"),
    ],
    ids=range(20),
)
@pytest.mark.parametrize("canvas", [0, SIDE])
def test_invalid_image_is_refused_with_its_dtype_or_shape(
    array: Any, words: str, canvas: int
) -> None:
    with pytest.raises(ValueError, match=words):
        seen(
            array,
            levels=(0, 1) if getattr(array, "dtype", None) == np.float64 else None,
            canvas=canvas,
        )


def test_array_with_alpha_is_on_white() -> None:
    assert np.abs(seen(RGBA) - on_white(RGB, ALPHA)).max() <= 1
    assert np.abs(seen(LA, channels=1)[..., 0] - on_white(three(GRAY), ALPHA)[..., 0]).max() <= 1


def test_array_of_the_right_shape_is_unchanged() -> None:
    seven = np.arange(SIDE * SIDE * 7).reshape(SIDE, SIDE, 7).astype(np.uint8)
    assert (seen(seven, channels=7) == seven).all()
    with pytest.raises(MismatchError, match=r"\(32, 32, 7\), but an image has 1 to 4 channels"):
        seen(seven, channels=7, size=8)


@decoders
def test_image_with_too_many_pixels_in_its_header_is_refused(decoder: str) -> None:
    file = bytearray(saved(image(RGB), "JPEG"))
    place = file.index(b"\xff\xc0") + 5  # height and width of the frame
    file[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    with pytest.raises(ValueError, match="not a complete image"):
        seen(bytes(file))


def test_levels_must_differ() -> None:
    with pytest.raises(Refused, match=r"--data\.levels 3 3: black and white must differ"):
        dataclasses.replace(data(), levels=(3, 3)).check()
