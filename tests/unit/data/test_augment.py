"""Augmentation: boxes, resampling and colors against Pillow, distributions, mixed pairs by hand."""

import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance
from support.compiling import new_emitters

from jaxbig.data.transforms import color
from jaxbig.data.transforms.augment import (
    Augmentation,
    CentralCrop,
    ColorJitter,
    CutMix,
    Either,
    Erasing,
    Flip,
    Mixing,
    Mixup,
    Normalize,
    RandomCrop,
    ResizedCrop,
    check_order,
    symmetric_beta,
)
from jaxbig.data.transforms.randaugment import RandAugment
from jaxbig.data.transforms.resample import resample, weights
from jaxbig.errors import Refused

PHOTO = sklearn.datasets.load_sample_image("china.jpg")  # 427 x 640
FLOWER = sklearn.datasets.load_sample_image("flower.jpg")[100:300, 150:360]


def pixels(photo: np.ndarray) -> jax.Array:
    return jnp.asarray(photo, jnp.float32) / 255


def difference(ours: jax.Array, theirs: Image.Image) -> float:
    """The mean absolute difference in gray levels."""
    return float(np.abs(np.asarray(ours, np.float64) * 255 - np.asarray(theirs, np.float64)).mean())


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def mapped(augmentation: Augmentation, images: Any, sizes: Any, keys: jax.Array) -> jax.Array:
    """The new images; the new sizes are theirs."""
    new, sizes = jax.jit(jax.vmap(augmentation))(images, jnp.asarray(sizes, jnp.int32), keys)
    assert new.dtype == jnp.float32
    assert sizes.dtype == jnp.int32 and (sizes == jnp.array([new.shape[1:3]])).all()
    return new


BOXES = {  # top, left, height, width
    "all": (0, 0, 427, 640),
    "down": (13, 50, 400, 300),
    "up": (200, 301, 40, 55),
    "up and down": (100, 100, 30, 540),
    "one pixel": (426, 639, 1, 1),
    "one row": (77, 0, 1, 640),
    "the same size": (20, 30, 96, 96),
    "fractions": (20.25, 30.5, 300.3, 400.9),
    "fractions at the edge": (226.5, 439.75, 200.5, 200.25),
    "small fractions": (100.7, 200.2, 20.9, 15.3),
}
resampled = jax.jit(resample, static_argnums=5)
weighed = jax.jit(weights, static_argnums=(2, 3))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("size", [96, 7])
def test_resampling_equals_pillow(name: str, size: int) -> None:
    top, left, height, width = BOXES[name]
    # pixels outside of the image must not count
    padded = jnp.pad(pixels(PHOTO), ((0, 13), (0, 6), (0, 0)), constant_values=9)
    low = int(top)
    first = int(left)
    cut = Image.fromarray(PHOTO).crop(
        (first, low, int(np.ceil(left + width)), int(np.ceil(top + height)))
    )
    box = (left - first, top - low, left - first + width, top - low + height)
    theirs = cut.resize((size, size), Image.Resampling.BILINEAR, box=box)
    ours = resampled(padded, top, left, height, width, size)
    assert difference(ours, theirs) < 0.7  # Pillow rounds twice


@hypothesis.given(start=st.floats(0, 40), length=st.floats(0, 24), size=st.sampled_from((1, 7, 70)))
@hypothesis.settings(deadline=None, max_examples=50)
def test_weights_are_of_the_box_and_sum_to_one(start: float, length: float, size: int) -> None:
    drawn = np.asarray(weighed(jnp.float32(start), jnp.float32(length), 65, size))
    assert (drawn >= 0).all()
    np.testing.assert_allclose(drawn.sum(1), 1, atol=1e-5)
    touched = np.flatnonzero(drawn.sum(0))
    assert touched[0] >= np.floor(start) and touched[-1] < np.ceil(start + max(length, 1))


@pytest.mark.parametrize("size", [(300, 400), (37, 500), (1, 50), (50, 1), (1, 1), (2, 3)])
def test_crop_boxes_are_inside_the_image(size: tuple[int, int]) -> None:
    boxes = jax.jit(jax.vmap(lambda key: jnp.stack(ResizedCrop().box(jnp.array(size), key))))(
        keys(500)
    )
    top, left, height, width = np.asarray(boxes).T
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    if min(size) > 100:
        share = height * width / (size[0] * size[1])
        assert share.min() > 0.075 and share.max() <= 1 and (width / height).max() < 1.36
        assert len(set(top)) > 50 and len(set(left)) > 50


def test_crop_boxes_are_drawn_as_published() -> None:
    """If nearly every first try fits: areas, log-ratios and free positions are uniform."""
    crop = ResizedCrop(least=0.1, most=0.3, ratio=2.0)
    boxes = jax.jit(jax.vmap(lambda key: jnp.stack(crop.box(jnp.array([2000, 2000]), key))))(
        keys(4000)
    )
    top, left, height, width = np.asarray(boxes, np.float64).T
    for drawn, low, high in (
        (height * width / 4e6, 0.1, 0.3),
        (np.log(width / height), -np.log(2), np.log(2)),
        (top / (2000 - height), 0, 1),
        (left / (2000 - width), 0, 1),
    ):
        assert scipy.stats.kstest(drawn, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_crop_box_is_centered_when_no_try_fits() -> None:
    # as torchvision: 10 x 100 is wider than 4/3: its full height and round(10 * 4/3) = 13 columns
    def box(*size: int) -> list[int]:
        found = ResizedCrop(least=1.0).box(jnp.array(size), jax.random.key(0))
        return [int(n) for n in found]

    assert box(10, 100) == [0, 43, 10, 13]
    assert box(100, 10) == [43, 0, 13, 10]
    assert box(0, 0) == [0, 0, 1, 1]


def test_resized_crop_is_its_box() -> None:
    images = jnp.stack([pixels(FLOWER)] * 3)
    sizes = jnp.array([[200, 210], [150, 100], [1, 210]])
    crop = ResizedCrop(size=48)
    ours = mapped(crop, images, sizes, keys(3))
    for image, size, key in zip(ours, sizes, keys(3), strict=True):
        top, left, height, width = (int(n) for n in crop.box(size, key))
        cut = Image.fromarray(FLOWER).crop((left, top, left + width, top + height))
        assert difference(image, cut.resize((48, 48), Image.Resampling.BILINEAR)) < 0.7


def test_central_crop_equals_pillow_for_padded_images_too() -> None:
    image = jnp.pad(pixels(FLOWER), ((0, 20), (0, 0), (0, 0)), constant_values=9)
    sizes = [[200, 210], [100, 80], [1, 9], [0, 0]]
    ours = mapped(CentralCrop(size=60), jnp.stack([image, image, image, image * 0]), sizes, keys(4))
    flower = Image.fromarray(FLOWER)
    box = (105 - 87.5, 100 - 87.5, 105 + 87.5, 100 + 87.5)  # 7/8 of 200
    assert difference(ours[0], flower.resize((60, 60), Image.Resampling.BILINEAR, box=box)) < 0.7
    box = (5, 15, 75, 85)
    assert difference(ours[1], flower.crop(box).resize((60, 60), Image.Resampling.BILINEAR)) < 0.7
    np.testing.assert_allclose(ours[2], jnp.broadcast_to(image[None, 0, 4], (60, 60, 3)), atol=1e-6)
    assert not ours[3].any()


def test_random_crop_is_a_window_of_the_padded_image() -> None:
    image = jax.random.uniform(jax.random.key(0), (6, 7, 1))
    crops = np.asarray(
        mapped(
            RandomCrop(size=6, padding=2), jnp.stack([image] * 1000), [[6, 7]] * 1000, keys(1000)
        )
    )
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = [padded[y : y + 6, x : x + 6] for y, x in itertools.product(range(5), range(6))]
    counts = [int((crops == window).all((1, 2, 3)).sum()) for window in windows]
    assert sum(counts) == 1000 and min(counts) > 8 and max(counts) < 70  # 33 each
    with pytest.raises(Refused, match="padding to 5 or more"):
        RandomCrop(size=16, padding=4)(image, jnp.array([6, 7]), jax.random.key(0))


def test_random_crop_of_a_small_image_contains_it() -> None:
    image = jnp.pad(jnp.ones((5, 5, 1)), ((0, 3), (0, 3), (0, 0)))
    crops = mapped(RandomCrop(size=8, padding=2), jnp.stack([image] * 50), [[5, 5]] * 50, keys(50))
    assert (crops.sum((1, 2, 3)) == 25).sum() > 5 and crops.sum((1, 2, 3)).min() >= 16


def test_flip_flips_half_of_the_images() -> None:
    image = jax.random.uniform(jax.random.key(0), (3, 4, 3))
    flips = mapped(Flip(), jnp.stack([image] * 1000), [[3, 4]] * 1000, keys(1000))
    mirrored = (flips == image[None, :, ::-1]).all((1, 2, 3))
    assert 430 < mirrored.sum() < 570 and ((flips == image[None]).all((1, 2, 3)) | mirrored).all()


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@pytest.mark.parametrize("factor", [0.3, 0.6, 1.7])
@pytest.mark.parametrize("name", ENHANCERS)
def test_color_operation_equals_pillow(name: str, factor: float) -> None:
    for photo in (PHOTO, FLOWER):
        theirs = ENHANCERS[name](Image.fromarray(photo)).enhance(factor)
        assert difference(getattr(color, name)(pixels(photo), factor), theirs) < 0.7
        assert difference(pixels(photo), theirs) > 3


@pytest.mark.parametrize("turn", [0.1, -0.23, 0.5])
def test_hue_equals_pillow(turn: float) -> None:
    for photo in (PHOTO, FLOWER):
        turned = np.array(Image.fromarray(photo).convert("HSV"))
        turned[..., 0] += np.uint8(round(turn * 255) % 256)  # it has 256 hues
        theirs = Image.merge(
            "HSV", [Image.fromarray(each) for each in np.moveaxis(turned, 2, 0)]
        ).convert("RGB")
        assert difference(color.hue(pixels(photo), jnp.float32(turn)), theirs) < 1.5
        assert difference(pixels(photo), theirs) > 3


def test_hue_by_hand() -> None:
    pixels = jnp.array([[[1, 0, 0], [0.5, 0.25, 0], [0.2, 0.2, 0.2]]])
    third = [[[0, 1, 0], [0, 0.5, 0.25], [0.2, 0.2, 0.2]]]
    np.testing.assert_allclose(color.hue(pixels, jnp.float32(1 / 3)), third, atol=1e-6)


def test_jitter_applies_all_four_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:  # factors fixed at their largest
        patched.setattr(
            jax.random,
            "uniform",
            lambda key, shape=(), minval=0, maxval=1: jnp.full(shape, float(maxval)),
        )
        image = pixels(FLOWER[:6, :6])
        jitter = ColorJitter(brightness=0.6, contrast=0.7, saturation=0.8, hue=0.2)
        ours = jax.vmap(lambda key: jitter(image, jnp.array([6, 6]), key)[0])(keys(400))
    changes = [
        (color.brightness, 1.6),
        (color.contrast, 1.7),
        (color.saturation, 1.8),
        (color.hue, 0.2),
    ]
    expected = []
    for order in itertools.permutations(changes):
        changed = image
        for change, amount in order:
            changed = change(changed, jnp.float32(amount))
        expected.append(changed)
    distances = np.abs(np.asarray(ours)[:, None] - np.asarray(expected)[None])
    near = distances.max((2, 3, 4)) < 1e-4  # [400, 24]
    assert near.any(1).all() and near.any(0).all()


def test_jitter_draws_factors_uniformly_and_changes_only_what_is_set() -> None:
    image = jnp.full((2, 2, 3), 0.5)
    out = mapped(
        ColorJitter(brightness=0.4), jnp.stack([image] * 1000), [[2, 2]] * 1000, keys(1000)
    )
    assert scipy.stats.kstest(out[:, 0, 0, 0] * 2, scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert (ColorJitter()(image, jnp.array([2, 2]), jax.random.key(0))[0] == image).all()
    shaded = jax.random.uniform(jax.random.key(0), (4, 4, 1))  # gray: nothing to saturate or turn
    unchanged = ColorJitter(saturation=0.9, hue=0.5)(shaded, jnp.array([4, 4]), jax.random.key(0))[
        0
    ]
    np.testing.assert_allclose(unchanged, shaded, atol=1e-6)


def test_erasing_replaces_a_box_by_noise_in_a_quarter_of_the_images() -> None:
    image = jnp.full((40, 60, 3), 2.0)
    out = np.asarray(mapped(Erasing(), jnp.stack([image] * 1000), [[40, 60]] * 1000, keys(1000)))
    erased = (out != 2).all(3)
    assert (
        ((out != 2).any(3) == erased).all() and (out[erased] >= 0).all() and (out[erased] < 1).all()
    )
    some = erased.any((1, 2))
    assert 190 < some.sum() < 310
    for each in erased[some]:
        height = np.ptp(np.flatnonzero(each.any(1))) + 1
        width = np.ptp(np.flatnonzero(each.any(0))) + 1
        assert each.sum() == height * width
        assert 0.015 < height * width / 2400 < 0.345
    assert out[erased].std() == pytest.approx(12**-0.5, abs=0.01)


def test_normalize_by_hand() -> None:
    image = jnp.array([[[0.1, 0.2, 0.3]]])
    normalize = Normalize(mean=(0.1, 0.1, 0.1), std=(1.0, 0.5, 0.25))
    np.testing.assert_allclose(
        normalize(image, jnp.ones(2, int), jax.random.key(0))[0], [[[0, 0.2, 0.8]]], atol=1e-6
    )
    with pytest.raises(Refused, match="1 channels"):
        normalize(image[..., :1], jnp.ones(2, int), jax.random.key(0))


CROPS = (ResizedCrop(size=8), CentralCrop(size=8), RandomCrop(size=8, padding=2))
LINEAR = (ResizedCrop(size=8), CentralCrop(size=8), Flip(probability=1.0))
"""Operations that commute with `Normalize`."""
OF_0_TO_1 = (RandomCrop(), ColorJitter(contrast=0.4), Erasing(), Normalize(), RandAugment())
KINDS = (*CROPS, Flip(), *OF_0_TO_1[1:])


def name_of(augmentation: Augmentation) -> str:
    return type(augmentation).__name__


@pytest.mark.parametrize("canvas", [False, True])
@pytest.mark.parametrize("second", KINDS, ids=name_of)
@pytest.mark.parametrize("first", KINDS, ids=name_of)
def test_order_of_each_pair_is_valid_or_refused(
    first: Augmentation, second: Augmentation, canvas: bool
) -> None:
    names = (name_of(first), name_of(second))
    crops, bounded = ({name_of(each) for each in group} for group in (CROPS, OF_0_TO_1))
    words = ""
    if canvas and names[0] not in crops and names[1] in crops:
        words = (
            f"--data.augment has {names[0]} before {names[1]}, but the images do not fill their "
            f"canvas"
        )
    elif names[0] == "Normalize" and names[1] in bounded:
        words = (
            f"--data.augment has {names[1]} after Normalize, but {names[1]} needs numbers of 0 to "
            f"1: put Normalize last"
        )
    if not words:
        check_order((first, second), 3, "augment", full=not canvas)
        return
    with pytest.raises(Refused) as refused:
        check_order((first, second), 3, "augment", full=not canvas)
    assert words in str(refused.value)


@pytest.mark.parametrize("first", CROPS, ids=name_of)
def test_crop_is_the_same_on_a_canvas_of_any_size(first: Augmentation) -> None:
    image = pixels(FLOWER[:12, :16]) / 2 + 0.5
    on = [jnp.zeros((side, side, 3)).at[:12, :16].set(image) for side in (16, 24)]
    small, large = (jax.jit(first)(each, jnp.array([12, 16]), jax.random.key(1))[0] for each in on)
    np.testing.assert_allclose(small, large, atol=1e-6)
    if isinstance(first, ResizedCrop | CentralCrop):
        assert small.min() >= 0.5  # nothing of the empty part


@pytest.mark.parametrize("operation", LINEAR, ids=name_of)
def test_normalize_may_precede_operations_that_only_move_pixels(operation: Augmentation) -> None:
    image = pixels(FLOWER[:12, :16])
    size = jnp.array([12, 16])
    key = jax.random.key(1)
    after = Normalize()(*operation(image, size, key), key)[0]
    before = operation(*Normalize()(image, size, key), key)[0]
    np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("operation", [ColorJitter(hue=0.1), RandAugment()], ids=name_of)
def test_color_operation_is_refused_without_1_or_3_channels(operation: Augmentation) -> None:
    for channels in (1, 3):
        check_order((operation,), channels, "augment", full=True)
    with pytest.raises(Refused, match="which needs images of 1 or 3 channels: these have 4"):
        check_order((operation,), 4, "augment", full=True)


EVERY = (
    ResizedCrop(size=16),
    Flip(),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    Erasing(),
)
EVERY = (*EVERY, RandomCrop(size=16, padding=2), CentralCrop(size=16), Normalize())


def through(images: Any, sizes: Any, targets: Any, mask: Any, keys: jax.Array) -> Any:
    """Every augmentation in sequence, and either mixing."""
    for place, augmentation in enumerate(EVERY):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        images, sizes = jax.vmap(augmentation)(images, sizes, folded)
    return Either()(images, targets, mask, keys)


def once(*inputs: Any) -> Any:
    """As a run compiles it: there an example has the same bits in any batch."""
    with new_emitters():
        return jax.jit(through).lower(*inputs).compile()(*inputs)


def rows(batch: int) -> tuple[Any, ...]:
    images = jax.random.uniform(jax.random.key(1), (batch, 20, 24, 3))
    sizes = jax.random.randint(jax.random.key(2), (batch, 2), 10, 20)
    targets = jax.nn.one_hot(jnp.arange(batch) % 5, 5)
    return images, sizes, targets, jnp.ones(batch), keys(batch, 3)


def test_example_depends_only_on_its_key_and_pair() -> None:
    eight = [np.asarray(each) for each in once(*rows(8))]
    four = once(*(each[4:] for each in rows(8)))
    for whole, part in zip(eight, four, strict=True):
        assert np.array_equal(whole[4:], part)


@pytest.mark.slow
def test_augmentation_needs_no_communication() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    apply = jax.jit(through, in_shardings=split, out_shardings=split)
    with new_emitters():
        compiled = apply.lower(*rows(8)).compile()
    assert not any(
        name in compiled.as_text() for name in ("all-reduce", "all-gather", "all-to-all", "permute")
    )
    for ours, theirs in zip(compiled(*jax.device_put(rows(8), split)), once(*rows(8)), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_beta_distribution_equals_scipy(alpha: float) -> None:
    drawn = jax.vmap(lambda key: symmetric_beta(key, alpha))(keys(5000))
    assert bool((drawn >= 0).all() & (drawn <= 1).all())
    # at alpha 0.1 a tenth is so close to 1 that float32 rounds it to 1: compared where it does not
    for edge in np.linspace(0.001, 0.999, 21):
        exact = scipy.stats.beta(alpha, alpha).cdf(edge)
        assert float((drawn <= edge).mean()) == pytest.approx(
            exact, abs=4 * (exact * (1 - exact) / 5000) ** 0.5 + 1e-3
        )


@pytest.mark.parametrize("mixing", [Mixup(alpha=1.0), CutMix(), Either()])
def test_pair_shares_lambda_and_targets_follow_the_pixels(mixing: Mixing) -> None:
    """All pixels of image i are i, so the mean shows what was mixed, and in which shares."""
    images = jnp.broadcast_to(jnp.arange(64.0)[:, None, None, None], (64, 9, 14, 1))
    mixed, targets = jax.jit(mixing)(images, jnp.eye(64), jnp.ones(64), keys(64))
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        mixed.mean((1, 2, 3)), targets @ jnp.arange(64.0), rtol=1e-5, atol=1e-4
    )
    own = np.diag(targets)
    np.testing.assert_allclose(own[::2], own[1::2], atol=1e-6)
    np.testing.assert_allclose(targets[np.arange(64), np.arange(64) ^ 1], 1 - own, atol=1e-6)
    assert np.ptp(own) > 0.5
    apart = np.asarray((mixed == jnp.round(mixed)).all((1, 2, 3)))  # boxes leave integers
    assert {Mixup: apart.sum() < 5, CutMix: apart.all(), Either: 10 < apart.sum() < 54}[
        type(mixing)
    ]


@pytest.mark.parametrize("mixing", [Mixup(alpha=1.0), CutMix()])
def test_skipped_example_is_not_mixed(mixing: Mixing) -> None:
    images = jax.random.uniform(jax.random.key(0), (6, 4, 4, 3))
    mask = jnp.array([1, 0, 0, 1, 1, 1])
    mixed, targets = mixing(images, jnp.eye(6), mask, keys(6))
    np.testing.assert_array_equal(mixed[:4], images[:4])
    np.testing.assert_array_equal(targets[:4], jnp.eye(6)[:4])
    assert (mixed[4:] != images[4:]).any()
    with pytest.raises(Refused, match="batch 5"):
        mixing(images[:5], jnp.eye(5), mask[:5], keys(5))


def test_empty_example_stays_finite() -> None:
    images, sizes, targets, mask, keys = rows(8)
    images, targets = once(images * 0, sizes * 0, targets * 0, mask * 0, keys)
    assert bool(jnp.isfinite(images).all() & jnp.isfinite(targets).all())
