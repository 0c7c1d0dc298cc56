"""Diffusion: its paths and steps by hand, the loss, guidance, and samples of a known target."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import Refused
from jaxbig.objectives.diffusion import Diffusion, eight_bits, row_keys

SHAPE = (2, 4, 4, 1)
BETAS = np.linspace(1e-4, 0.02, 1000)  # of steps 1 to 1,000


def arrays(*seeds: int) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(seed), SHAPE) for seed in seeds]


def full(value: float) -> jax.Array:
    return jnp.full(SHAPE[0], value)


def test_flow_sees_a_straight_line_and_predicts_its_velocity() -> None:
    image, noise = arrays(0, 1)
    flow = Diffusion()
    seen = 0.75 * image + 0.25 * noise
    assert [float(each[0, 0, 0, 0]) for each in flow.shares(full(0.25))] == [0.75, 0.25]
    found = flow.parts(seen, noise - image, full(0.25))
    for each, expected in zip(found, (image, noise), strict=True):
        np.testing.assert_allclose(each, expected, atol=1e-5)


def test_a_step_of_flow_is_eulers() -> None:
    seen, velocity = arrays(0, 1)
    flow = Diffusion()
    image, noise = flow.parts(seen, velocity, full(0.8))
    after = flow.step_back(image, noise, jnp.zeros(SHAPE), full(0.8), full(0.7))
    np.testing.assert_allclose(after, seen - 0.1 * velocity, atol=1e-5)


def test_a_step_of_ddpm_with_fresh_noise_is_its_posterior() -> None:
    image, seen, new = arrays(0, 1, 2)
    ddpm = Diffusion(kind="ddpm", eta=1.0)
    step = 300
    beta = BETAS[step - 1]
    left = np.prod(1 - BETAS[:step])
    before = np.prod(1 - BETAS[: step - 1])
    # Ho et al. (2020), equation 7
    mean = np.sqrt(before) * beta / (1 - left) * image
    mean += np.sqrt(1 - beta) * (1 - before) / (1 - left) * seen
    deviation = np.sqrt((1 - before) / (1 - left) * beta)
    noise = (seen - np.sqrt(left) * image) / np.sqrt(1 - left)
    now = full(step / 1000)
    then = full((step - 1) / 1000)
    for each, expected in zip(ddpm.parts(seen, noise, now), (image, noise), strict=True):
        np.testing.assert_allclose(each, expected, atol=1e-4)
    found = ddpm.step_back(image, noise, new, now, then)
    np.testing.assert_allclose(found, mean + deviation * new, atol=1e-4)
    np.testing.assert_allclose(ddpm.step_back(image, noise, 0 * new, now, then), mean, atol=1e-4)


def batch(rows: int) -> dict[str, Any]:
    return {
        "inputs": jax.random.uniform(jax.random.key(3), (rows, *SHAPE[1:])),
        "targets": jnp.arange(rows) % 10,
        "mask": jnp.ones(rows),
    }


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
def test_the_loss_is_the_squared_error_of_what_is_predicted(kind: Any) -> None:
    seen: list[Any] = []

    def model(*given: Any, train: bool) -> jax.Array:
        seen.extend(given)
        return 0.5 * given[0]

    objective = Diffusion(kind=kind)
    rows = batch(500)
    image = 2 * rows["inputs"] - 1
    losses = objective.losses(model, rows, jax.random.key(0), True)
    noisy, times, labels = map(np.asarray, seen)
    if kind == "flow":
        of_image = 1 - times
        of_noise = times
        assert 0 <= times.min() < 0.05 and 0.95 < times.max() < 1
    else:
        left = np.cumprod(1 - BETAS)[np.round(times * 1000).astype(int) - 1]
        of_image = np.sqrt(left)
        of_noise = np.sqrt(1 - left)
        assert times.min() >= 0.001 and times.max() <= 1
    at = (slice(None), None, None, None)
    noise = (noisy - of_image[at] * image) / of_noise[at]
    target = noise if kind == "ddpm" else noise - image
    expected = np.mean((0.5 * noisy - target) ** 2, axis=(1, 2, 3))
    sure = of_noise > 0.1  # the noise is known well
    np.testing.assert_allclose(losses[sure], expected[sure], rtol=1e-3)
    assert abs(noise[sure].mean()) < 0.05 and abs(noise[sure].std() - 1) < 0.05
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05
    dropped = labels == -1
    assert 0.05 < dropped.mean() < 0.15
    np.testing.assert_array_equal(labels[~dropped], rows["targets"][~dropped])


def test_an_examples_loss_does_not_depend_on_its_batch_and_an_evaluation_repeats_itself() -> None:
    seen: list[Any] = []

    def model(*given: Any, train: bool) -> jax.Array:
        seen.append(given[2])
        return jnp.sin(given[0]) * given[1].reshape(-1, 1, 1, 1)

    rows = batch(8)
    objective = Diffusion()
    key = jax.random.key(0)
    losses = objective.losses(model, rows, key, False)
    turned = {name: each[::-1][:5] for name, each in rows.items()}
    found = objective.losses(model, turned, key, False)
    np.testing.assert_allclose(found, losses[::-1][:5], rtol=1e-6)
    np.testing.assert_array_equal(seen[0], rows["targets"])
    other = objective.losses(model, rows, jax.random.key(1), False)
    assert not np.any(np.asarray(other) == np.asarray(losses))


class Exact(nn.Module):
    """What is best to predict if an image's numbers are normal, with the mean of its class."""

    kind: str
    means: tuple[float, ...]
    deviation: float

    def __call__(self, x: jax.Array, times: Any, labels: Any, train: bool = False) -> jax.Array:
        a, s = Diffusion(kind=self.kind).shares(times)  # type: ignore[arg-type]
        mean = jnp.array(self.means)[labels].reshape(-1, 1, 1, 1)
        rest = (x - a * mean) / ((a * self.deviation) ** 2 + s**2)
        noise = s * rest
        return noise if self.kind == "ddpm" else noise - (mean + a * self.deviation**2 * rest)


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_normal_target_have_its_mean_and_deviation(kind: Any, eta: float) -> None:
    objective = Diffusion(kind=kind, sample_steps=1000, guidance=1.0, eta=eta)
    labels = jnp.arange(1000) % 2
    keys = jax.random.split(jax.random.key(0), 1000)
    model = Exact(kind, (-0.2, 0.4), 0.15)
    draw = nn.apply(lambda bound: objective.sample(bound, labels, keys, SHAPE[1:]), model)
    samples = 2 * np.asarray(jax.jit(draw)({})) - 1
    for number, mean in enumerate(model.means):
        of_class = samples[number::2]
        assert of_class.mean() == pytest.approx(mean, abs=0.01)
        assert of_class.std() == pytest.approx(0.15, rel=0.05)
    assert abs(np.corrcoef(samples[:-1].ravel(), samples[1:].ravel())[0, 1] + 0.8) < 0.05
    np.testing.assert_array_equal(samples, 2 * np.asarray(jax.jit(draw)({})) - 1)


def test_guidance_goes_beyond_the_class() -> None:
    def model(x: jax.Array, times: Any, labels: jax.Array, train: bool) -> jax.Array:
        return x + jnp.broadcast_to(labels.reshape(-1, 1, 1, 1).astype(x.dtype), x.shape)

    [seen] = arrays(0)
    labels = jnp.array([3, 7])
    expected = {0.0: [-1, -1], 1.0: [3, 7], 2.0: [7, 15]}  # -1 + w (label + 1)
    for guidance, added in expected.items():
        found = Diffusion(guidance=guidance).predicted(model, seen, full(0.5), labels)
        np.testing.assert_allclose((found - seen)[:, 0, 0, 0], added, atol=1e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_images_of_few_levels_have_keys_of_their_own(levels: int) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, levels, (2_000, 8, 8, 1)) / np.float32(levels - 1)
    keys = jax.random.key_data(row_keys(jax.random.key(0), jnp.asarray(images)))
    assert len(np.unique(np.asarray(keys), axis=0)) == 2_000


@pytest.mark.parametrize(("kind", "steps"), [("flow", 7), ("ddpm", 7), ("ddpm", 1000)])
def test_a_sample_is_asked_at_times_of_training(kind: Any, steps: int) -> None:
    seen: list[np.ndarray] = []

    class Listening(nn.Module):
        @nn.compact
        def __call__(self, x: Any, times: Any, labels: Any, train: bool) -> Any:
            jax.debug.callback(lambda times: seen.append(np.asarray(times)), times, ordered=True)
            return x

    objective = Diffusion(kind=kind, sample_steps=steps, guidance=1.0)
    keys = jax.random.split(jax.random.key(0), 1)
    labels = jnp.zeros(1, jnp.int32)
    sample = nn.apply(lambda bound: objective.sample(bound, labels, keys, (2, 2, 1)), Listening())
    samples = sample({})
    jax.effects_barrier()
    assert np.isfinite(samples).all()
    times = np.concatenate(seen)
    assert len(times) == steps and times[0] == 1 and np.all(np.diff(times) < 0)
    if kind == "ddpm":
        np.testing.assert_allclose(1000 * times, np.round(1000 * times), atol=1e-3)


def test_what_is_no_image_of_one_class_is_refused() -> None:
    rows = batch(4)
    mixed = {**rows, "targets": jax.nn.one_hot(rows["targets"], 10)}
    flat = {**rows, "inputs": rows["inputs"].reshape(4, -1)}
    whole = {**rows, "inputs": rows["inputs"].astype(jnp.uint8)}
    wrong: Any = dataclasses.replace(Diffusion(), kind="score")
    long = Diffusion(kind="ddpm", sample_steps=1001)
    for objective, each, said in (
        (Diffusion(), mixed, "with one class each"),
        (Diffusion(), flat, "with one class each"),
        (Diffusion(), whole, "inputs are uint8"),
        (wrong, rows, "kind"),
        (long, rows, "sample_steps 1001: ddpm has 1000 at most"),
    ):
        with pytest.raises(Refused, match=said):
            objective.losses(None, each, jax.random.key(0), True)


def test_gray_samples_are_pictures_in_gray() -> None:
    with pytest.raises(Refused, match="a sample has 2 channels, and a picture 1 or 3"):
        eight_bits(np.zeros((4, 4, 2)))
    picture = eight_bits(np.array([[[0.0], [0.5], [1.0]]]))
    np.testing.assert_array_equal(picture, np.array([[[0] * 3, [128] * 3, [255] * 3]]))
