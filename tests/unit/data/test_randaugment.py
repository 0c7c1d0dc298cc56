"""RandAugment: each operation against Pillow on two photographs, and their distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from jaxbig.data.transforms import randaugment
from jaxbig.data.transforms.randaugment import OPERATIONS, RandAugment

# odd and even sides; one of half the contrast, for autocontrast; one nearly all edge
PHOTOS = (
    sklearn.datasets.load_sample_image("china.jpg")[100:324, 200:401],
    sklearn.datasets.load_sample_image("flower.jpg")[50:250, 150:374] // np.uint8(2) + np.uint8(30),
    sklearn.datasets.load_sample_image("china.jpg")[200:207, 300:306],
)
NEAREST = Image.Resampling.NEAREST
AFFINE = Image.Transform.AFFINE
FILL = (128, 128, 128)


def difference(ours: jax.Array, theirs: Image.Image) -> float:
    """The mean absolute difference in gray levels."""
    return float(np.abs(np.asarray(ours, np.float64) * 255 - np.asarray(theirs, np.float64)).mean())


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, AFFINE, matrix, NEAREST, fillcolor=FILL)


PILLOW: dict[str, Any] = {
    "identity": lambda image, amount: image,
    "autocontrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
    "rotate": lambda image, amount: image.rotate(amount, NEAREST, fillcolor=FILL),
    "solarize": lambda image, amount: ImageOps.solarize(image, amount),
    "saturation": lambda image, amount: ImageEnhance.Color(image).enhance(amount),
    "posterize": lambda image, amount: ImageOps.posterize(image, amount),
    "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(amount),
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(amount),
    "shear_x": lambda image, amount: moved(image, 1, amount, 0, 0, 1, 0),
    "shear_y": lambda image, amount: moved(image, 1, 0, 0, amount, 1, 0),
    "translate_x": lambda image, amount: moved(image, 1, 0, amount * image.width, 0, 1, 0),
    "translate_y": lambda image, amount: moved(image, 1, 0, 0, 0, 1, amount * image.height),
}
AMOUNTS: dict[str, tuple[float, ...]] = {
    "rotate": (27, -13.5, 60),
    "solarize": (25, 128, 256),
    "posterize": (1, 4, 8),
    **dict.fromkeys(("saturation", "contrast", "brightness", "sharpness"), (0.1, 1.81, 1.0)),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (0.27, -0.31)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_operation_equals_pillow(name: str) -> None:
    apply = jax.jit(getattr(randaugment, name))
    # Pillow truncates where it blends; otherwise only pixels exactly between two others may differ
    bound = 1 if name in ("saturation", "contrast", "brightness", "sharpness") else 0.1
    changes = []
    for photo in PHOTOS:
        image = jnp.asarray(photo, jnp.float32) / 255
        picture = Image.fromarray(photo)
        for amount in AMOUNTS.get(name, (0,)):
            theirs = PILLOW[name](picture, amount)
            assert difference(apply(image, amount), theirs) < bound, amount
            changes.append(difference(image, theirs))
    assert name == "identity" or max(changes) > 3  # enough to detect


def test_operations_are_those_of_the_paper() -> None:
    assert {operation.apply.__name__ for operation in OPERATIONS} == set(PILLOW)
    # at magnitude 9, by hand
    amounts = {o.apply.__name__: o.start + o.slope * 0.9 for o in OPERATIONS}
    assert amounts["rotate"] == pytest.approx(27)
    assert amounts["solarize"] == pytest.approx(25.6)
    assert amounts["posterize"] == pytest.approx(4.4)  # 4 bits
    assert amounts["contrast"] == pytest.approx(1.81)
    assert amounts["shear_x"] == pytest.approx(0.27)
    assert amounts["translate_y"] == pytest.approx(0.40785, abs=1e-4)


def test_strength_zero_changes_nothing_but_levels() -> None:
    photo = jnp.asarray(PHOTOS[2], jnp.float32) / 255
    for operation in OPERATIONS:
        if operation.slope:
            np.testing.assert_allclose(
                jax.jit(operation.apply)(photo, operation.start), photo, atol=1e-6
            )


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 2, 1), (4, 7, 1)])
def test_operation_accepts_small_gray_and_flat_images(name: str, shape: tuple[int, ...]) -> None:
    images = jnp.stack(
        [jnp.zeros(shape), jnp.ones(shape), jnp.linspace(0, 1, np.prod(shape)).reshape(shape)]
    )
    changed = jax.jit(jax.vmap(getattr(randaugment, name), (0, None)))(images, 0.3)
    assert changed.shape == images.shape and changed.dtype == jnp.float32
    assert bool((changed >= 0).all() & (changed <= 1).all())


def test_equalize_by_hand() -> None:
    # 300 pixels of level 10 and 210 of 20: the step is (510 - 210) // 255 = 1, so 10 becomes 0, and
    # 20 becomes 300, clipped to 255
    image = jnp.asarray([10] * 300 + [20] * 210, jnp.float32).reshape(51, 10, 1) / 255
    assert np.unique(np.round(jax.jit(randaugment.equalize)(image, 0) * 255)).tolist() == [0, 255]


def test_quarter_turn_is_counterclockwise() -> None:
    image = jax.random.uniform(jax.random.key(3), (6, 6, 3))
    np.testing.assert_array_equal(jax.jit(randaugment.rotate)(image, 90.0), np.rot90(image))


def test_example_depends_only_on_its_key_without_communication() -> None:
    images = jax.random.uniform(jax.random.key(0), (8, 9, 6, 3))
    keys = jax.random.split(jax.random.key(1), 8)
    augment = jax.vmap(lambda image, key: RandAugment()(image, jnp.array([9, 6]), key)[0])
    eight = np.asarray(jax.jit(augment)(images, keys))
    assert np.array_equal(eight[4:], jax.jit(augment)(images[4:], keys[4:]))
    split = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data"))
    compiled = (
        jax.jit(augment, in_shardings=split, out_shardings=split).lower(images, keys).compile()
    )
    text = compiled.as_text()
    arguments = jax.device_put((images, keys), split)
    assert not any(
        crossing in text for crossing in ("all-reduce", "all-gather", "all-to-all", "permute")
    )
    assert np.array_equal(eight, compiled(*arguments))


def test_every_operation_is_drawn_and_with_both_signs() -> None:
    """On a ramp each operation with each sign has a different result.

    All 23 occur; those of a signed operation half as often.
    """
    grid = jnp.meshgrid(jnp.linspace(0.1, 0.8, 8), jnp.linspace(0.2, 0.9, 8))
    ramp = jnp.stack(grid, 2).mean(2, keepdims=True) ** 2
    image = jnp.concatenate([ramp, ramp[::-1], ramp[:, ::-1] * 0.5], 2)
    keys = jax.random.split(jax.random.key(2), 2800)
    draw = jax.jit(jax.vmap(lambda key: RandAugment(layers=1)(image, jnp.array([8, 8]), key)[0]))
    _, counts = np.unique(np.asarray(draw(keys)).round(5), axis=0, return_counts=True)
    signed = sum(operation.signed for operation in OPERATIONS)
    assert len(counts) == len(OPERATIONS) + signed
    ordered = np.sort(counts)
    # 100 each if signed, else 200; seven standard deviations are 69 and 95
    assert (np.abs(ordered[: 2 * signed] - 100) < 69).all()
    assert (np.abs(ordered[2 * signed :] - 200) < 95).all()
