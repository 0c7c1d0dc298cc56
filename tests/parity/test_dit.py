"""DiT against PyTorch, from the same parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.errors import Refused
from jaxbig.models.dit import DiT
from jaxbig.models.vit import PatchFields
from jaxbig.tools.check_sharding import perturbed

MODEL = DiT(classes=10, patch=2, depth=2, width=32, heads=4)


def initial(model: DiT, x: jax.Array, *rest: jax.Array) -> dict:
    return nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), x, *rest))


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (3, 8, 6, 2))
    return x, jnp.array([0.0, 0.3, 1.0]), jnp.array([4, -1, 9])


def reference(params: dict, x: np.ndarray, times: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Peebles and Xie (2023), figure 3, adaLN-zero."""
    p = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten_with_paths(params).items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = p[f"{name}/bias"]
        kernel = p[f"{name}/kernel"].reshape(-1, bias.numel())
        return x.reshape(*x.shape[:-1], len(kernel)) @ kernel + bias.reshape(-1)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    batch, height, across, channels = x.shape
    rows = height // 2
    columns = across // 2
    cut = torch.tensor(x).reshape(batch, rows, 2, columns, 2, channels).transpose(2, 3)
    h = linear("patches", cut.reshape(batch, rows * columns, 4 * channels))
    h = h + torch.tensor(np.asarray(PatchFields.grid(MODEL, rows, columns)))
    angle = 1000 * torch.tensor(times)[:, None] * 10_000 ** (-torch.arange(0, 256, 2) / 256)
    time = linear("time", torch.cat([angle.sin(), angle.cos()], dim=1))
    time = linear("time_out", F.silu(time))
    c = F.silu(time + p["labels/embedding"][torch.tensor(labels) + 1])  # the first: no class
    for layer in range(2):
        block = f"blocks/block_{layer}"
        for branch in ("attention", "mlp"):
            shift, scale, gate = linear(f"{block}/{branch}_modulation", c)[:, None].chunk(3, -1)
            y = norm(h) * (1 + scale) + shift
            if branch == "mlp":
                y = linear(f"{block}/down", F.gelu(linear(f"{block}/up", y), approximate="tanh"))
            else:
                q = linear(f"{block}/attention/query", y)
                k, v = linear(f"{block}/attention/key_value", y).chunk(2, -1)
                q, k, v = (z.unflatten(-1, (4, 8)).transpose(1, 2) for z in (q, k, v))
                y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
                y = linear(f"{block}/attention/out", y)
            h = h + gate * y
    shift, scale = linear("modulation", c)[:, None].chunk(2, -1)
    h = linear("head", norm(h) * (1 + scale) + shift)
    h = h.reshape(batch, rows, columns, 2, 2, channels).transpose(2, 3)
    return h.reshape(x.shape).numpy()


def test_it_is_pytorchs() -> None:
    given = inputs()
    params = perturbed(initial(MODEL, *given)["params"])
    found = MODEL.apply({"params": params}, *given)
    expected = reference(params, *map(np.asarray, given))
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_at_first_it_gives_0() -> None:
    given = inputs()
    found = MODEL.apply(initial(MODEL, *given), *given)
    assert found.shape == given[0].shape and not np.any(found)


def test_a_class_beyond_those_it_has_is_not_a_number() -> None:
    x, times, _ = inputs()
    params = perturbed(initial(MODEL, *inputs())["params"])
    found = MODEL.apply({"params": params}, x, times, jnp.array([9, 10, -5]))
    assert np.isfinite(found).all(axis=(1, 2, 3)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"pre_norm": False}, "pre_norm is off"), ({"sandwich_norm": True}, "would undo the gates")],
)
def test_what_a_condition_cannot_scale_is_refused(change: dict, said: str) -> None:
    with pytest.raises(Refused, match=said):
        jax.eval_shape(MODEL.clone(**change).init, jax.random.key(0), *inputs())


def test_it_has_no_features() -> None:
    with pytest.raises(Refused, match="DiT has no ClassifierHead"):
        MODEL.features(*inputs())
