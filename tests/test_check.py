"""`check` passes what ships and names the leaf of a planted wrong gradient."""

import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import small

from jaxbig.check import apart, check
from jaxbig.errors import Refused
from jaxbig.mesh import Mesh
from jaxbig.models.convolutional import ConvNet

SPLIT = Mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("name", ["digits_convnet", pytest.param("digits_resnet", marks=pytest.mark.slow)])
def test_what_ships_passes(name: str) -> None:
    result = check(small(name, mesh=SPLIT), 1e-5)
    assert result["ok"] and result["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1, "expert": 1}
    assert 0 <= result["loss_relative_error"] < 1e-6
    assert result["gradient_relative_error"] == result["errors"][result["worst_parameter"]] < 1e-5


class Unpinned(ConvNet):
    """A conv net whose parameters and activations are placed as the partitioner likes: exact loss, wrong gradient."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def placed(name: str, shape: tuple[int, ...], *axes: str | None) -> Any:
            return self.param(name, nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes), shape)

        kernel = placed("kernel", (3, 3, 1, 16), None, None, None, "mlp")
        layout: Any = ("NHWC", "HWIO", "NHWC")
        y = nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout))
        return y.mean(axis=(1, 2)) @ placed("head", (16, 16), "embed", "hidden")[:, : self.classes]


def test_a_planted_wrong_gradient_is_named() -> None:
    experiment = small("digits_convnet", mesh=SPLIT, model=Unpinned(layers=(), classes=10))
    result = check(experiment, 1e-4)
    assert result["loss_relative_error"] < 1e-5
    assert not result["ok"] and result["worst_parameter"] == "kernel" and result["gradient_relative_error"] > 0.1


def test_one_leaf_that_is_off_is_measured_against_its_norm() -> None:
    expected = {"a": np.array([3.0, 4.0]), "b": np.array([1.0]), "c": np.zeros(2)}
    found = {"a": np.array([3.0, 4.5]), "b": np.array([1.0]), "c": np.zeros(2)}
    assert apart(found, expected) == {"a": pytest.approx(0.1), "b": 0.0, "c": 0.0}
    least = np.sqrt(26) / 300
    assert apart({**expected, "c": np.array([least, 0.0])}, expected)["c"] == pytest.approx(1.0)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, float("nan")])
def test_a_tolerance_that_says_nothing_is_refused(tolerance: float) -> None:
    with pytest.raises(Refused, match="--tolerance"):
        check(small("digits_convnet"), tolerance)


def test_the_command_tells_the_worst_and_exits_by_it(jaxbig: Callable[..., Any]) -> None:
    tight = jaxbig("check", "digits_convnet", "--tolerance", "1e-12", "--json", JAX_NUM_CPU_DEVICES="2")
    said = json.loads(tight.stdout)
    assert tight.returncode == 1 and said["ok"] is False and said["gradient_relative_error"] < 1e-5
    alone = jaxbig("check", "digits_convnet")
    assert alone.returncode == 2 and "JAX_NUM_CPU_DEVICES=8" in alone.stderr
