"""The Conformer's block and the first convolutions against PyTorch, from the same parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.errors import Refused
from jaxbig.models.speech import Conformer, ConformerBlock, Jasper, Subsampling
from jaxbig.tools.check_sharding import perturbed

HEADS = 2
WIDTH = 8
KERNEL = 5
LENGTH = 9


def parameters(module: nn.Module, *given: Any) -> Any:
    return perturbed(nn.meta.unbox(module.init(jax.random.key(0), *given))["params"])


def tensors(params: Any) -> dict[str, torch.Tensor]:
    return {
        path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten_with_paths(params).items()
    }


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of [H, L, D] (Su et al., 2021), halves apart."""
    half = x.shape[-1] // 2
    turns = 10_000 ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[1])[:, None] * turns
    one, two = x.chunk(2, -1)
    return torch.cat(
        [one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1
    )


def block(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Gulati et al. (2020), section 2, of one example [L, D] without padding."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = p[f"{name}/bias"].reshape(-1)
        return x @ p[f"{name}/kernel"].reshape(x.shape[-1], -1) + bias

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        scale = p[f"{name}/scale"]
        bias = p[f"{name}/bias"]
        return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)

    def feed_forward(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(f"{name}_down", F.silu(linear(f"{name}_up", norm(f"{name}_norm", x))))

    x = x + 0.5 * feed_forward("first", x)
    y = norm("attention_norm", x)
    q = linear("attention/query", y)
    k, v = linear("attention/key_value", y).chunk(2, -1)
    q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(0, 1) for z in (q, k, v))
    y = F.scaled_dot_product_attention(rotated(q), rotated(k), v).transpose(0, 1).flatten(1)
    x = x + linear("attention/out", y)
    y = F.glu(linear("convolution_in", norm("convolution_norm", x)), -1)
    kernel = p["convolution/kernel"].T[:, None]  # [D, 1, size]
    y = F.conv1d(y.T[None], kernel, p["convolution/bias"], padding=KERNEL // 2, groups=WIDTH)[0].T
    y = F.silu(norm("convolution_middle_norm", y))
    x = x + linear("convolution_out", y)
    x = x + 0.5 * feed_forward("second", x)
    return norm("norm", x)


def test_a_block_is_pytorchs_and_sees_no_padding() -> None:
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
    lengths = jnp.array([LENGTH, 6])
    module = ConformerBlock(HEADS, KERNEL, 0.0)
    params = parameters(module, x, lengths, False)
    found = module.apply({"params": params}, x, lengths, False)
    for row, length in enumerate(lengths.tolist()):
        expected = block(tensors(params), torch.tensor(np.asarray(x[row, :length])))
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-5)


def test_first_convolutions_are_pytorchs_and_see_no_padding() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 11, 7, 1))
    lengths = jnp.array([11, 6])
    module = Subsampling(WIDTH, 3)
    params = parameters(module, x, lengths)
    found, halved = module.apply({"params": params}, x, lengths)
    assert halved.tolist() == [3, 2]
    p = tensors(params)
    for row, length in enumerate(lengths.tolist()):
        y = torch.tensor(np.asarray(x[row, :length])).permute(2, 0, 1)[None]
        for layer in range(2):
            kernel = p[f"convolution_{layer}/kernel"].permute(3, 2, 0, 1)
            y = F.relu(F.conv2d(y, kernel, p[f"convolution_{layer}/bias"], 2, padding=1))
        y = y[0].permute(1, 2, 0).flatten(1)  # [L, M * C]
        expected = y @ p["linear/kernel"] + p["linear/bias"]
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-5)


def test_jasper_is_pytorchs_and_sees_no_padding() -> None:
    bands = 7
    x = jax.random.normal(jax.random.key(1), (2, 12, bands, 1))
    lengths = jnp.array([12, 6])
    module = Jasper(classes=3, width=WIDTH, depth=2, kernel=KERNEL)
    params = parameters(module, x, lengths)
    found = module.apply({"params": params}, x, lengths)
    assert found.shape == (2, 3, 3)
    p = tensors(params)

    def convolved(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        """[L, C] -> [L', D]."""
        kernel = p[f"{name}/linear/kernel"].unflatten(0, (KERNEL, -1)).permute(2, 1, 0)
        bias = p[f"{name}/linear/bias"]
        y = F.conv1d(x.T[None], kernel, bias, stride, padding=KERNEL // 2)[0].T
        return F.relu(
            F.layer_norm(y, [WIDTH], p[f"{name}/norm/scale"], p[f"{name}/norm/bias"], eps=1e-6)
        )

    for row, length in enumerate(lengths.tolist()):
        y = torch.tensor(np.asarray(x[row, :length, :, 0]))
        for layer in range(2):
            y = convolved(f"convolution_{layer}", y, 2)
        for layer in range(2):
            y = y + convolved(f"block_{layer}", y, 1)
        expected = y @ p["head/kernel"] + p["head/bias"]
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("model", [Conformer(classes=3, kernel=4), Jasper(classes=3, kernel=4)])
def test_an_even_kernel_is_refused(model: nn.Module) -> None:
    x = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(Refused, match="kernel 4 is even, and has no center"):
        jax.eval_shape(model.init, jax.random.key(0), x)
