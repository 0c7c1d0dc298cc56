"""U-Net against PyTorch, from the same parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.errors import Refused
from jaxbig.models.unet import UNet

MODEL = UNet(classes=3, levels=3, width=4)


def reference(params: dict, x: np.ndarray) -> np.ndarray:
    """Ronneberger et al. (2015), figure 1, in training: statistics of the batch."""
    p = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten_with_paths(params).items()}

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, p[f"{name}/conv/kernel"].permute(3, 2, 0, 1), padding=1)
        scale = p[f"{name}/norm/scale"]
        bias = p[f"{name}/norm/bias"]
        return F.relu(F.batch_norm(y, None, None, scale, bias, training=True))

    def twice(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer(f"{name}_2", layer(f"{name}_1", x))

    one = twice(torch.tensor(x).permute(0, 3, 1, 2), "down_0")
    two = twice(F.max_pool2d(one, 2), "down_1")
    three = twice(F.max_pool2d(two, 2), "down_2")
    y = layer("grow_1", F.interpolate(three, scale_factor=2))
    y = twice(torch.cat([two, y], 1), "up_1")
    y = layer("grow_0", F.interpolate(y, scale_factor=2))
    y = twice(torch.cat([one, y], 1), "up_0")
    return (y.permute(0, 2, 3, 1) @ p["head/kernel"] + p["head/bias"]).numpy()


def test_it_is_pytorchs() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    variables = nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), x))
    found, _ = MODEL.apply(variables, x, train=True, mutable=["batch_stats"])
    assert found.shape == (2, 8, 12, 3)
    np.testing.assert_allclose(found, reference(variables["params"], np.asarray(x)), atol=1e-4)


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(Refused, match=r"levels 3: .* must divide by 4, and it is 8x6"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 6, 3)))
