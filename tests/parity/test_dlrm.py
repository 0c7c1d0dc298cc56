"""DLRM against PyTorch, from the same parameters."""

import flax.linen as nn
import jax
import numpy as np
import torch
import torch.nn.functional as F

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.models.dlrm import DLRM

MODEL = DLRM(classes=2, vocab=20, width=4, bottom=(8, 6), top=(10, 5))


def reference(params: dict, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Naumov et al. (2019), section 2, with two logits."""
    p = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten_with_paths(params).items()}

    def mlp(name: str, x: torch.Tensor) -> torch.Tensor:
        layer = 0
        while f"{name}_{layer}/kernel" in p:
            kernel = p[f"{name}_{layer}/kernel"]
            x = F.relu(F.linear(x, kernel.T, p[f"{name}_{layer}/bias"]))
            layer += 1
        return x

    x = mlp("bottom", torch.tensor(numbers))
    vectors = [x, *F.embedding(torch.tensor(rows), p["table/embedding"]).unbind(dim=1)]
    pairs = [(vectors[i] * vectors[j]).sum(dim=1) for i in range(len(vectors)) for j in range(i)]
    x = mlp("top", torch.cat([x, torch.stack(pairs, dim=1)], dim=1))
    return (x @ p["head/kernel"] + p["head/bias"]).numpy()


def test_it_is_pytorchs() -> None:
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 20, (6, 3))
    numbers = draw.normal(size=(6, 5)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), rows, numbers))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases are not 0
    found = MODEL.apply({"params": params}, rows, numbers)
    np.testing.assert_allclose(found, reference(params, rows, numbers), rtol=1e-4, atol=1e-5)
