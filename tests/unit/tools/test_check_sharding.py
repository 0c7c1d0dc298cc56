"""`check` passes the experiments, names the leaf of a wrong gradient, and runs a shrunken copy."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.discover import load
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet
from jaxbig.models.layers.basic import Linear
from jaxbig.program.program import make_program
from jaxbig.tools.check_sharding import apart, check, devices_for
from jaxbig.tools.shrink import fewer, least, small_program

SPLIT = Mesh(data=2, fsdp=2, tensor=2)
NAMES = ["digits_convnet", "digits_resnet", "c4_mixtral_8x7b"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_ships_passes_in_float64(name: str) -> None:
    result = check((load if name == "digits_convnet" else small)(name).replace(mesh=SPLIT))
    assert result["ok"] and result["mesh"] == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
        "sequence": 1,
        "expert": 1,
        "stage": 1,
    }
    assert (result["dtype"], result["tolerance"]) == ("float64", 1e-8)
    assert 0 <= result["loss_relative_error"] < 1e-13
    assert result["gradient_relative_error"] == result["errors"][result["worst_parameter"]] < 1e-13


def test_a_large_experiment_is_checked_by_a_shrunken_copy_with_the_same_placement() -> None:
    experiment = dataclasses.replace(load("c4_llama_70b"), mesh=SPLIT)
    program = small_program(experiment, jax.devices(), 8)
    model: Any = program.experiment.model
    sizes = model.depth, model.width, model.mlp_width, model.heads, model.kv_heads, model.mlp_chunks
    assert sizes == (3, 256, 896, 64, 8, 2)  # as many heads and pieces, a 32nd of the widths
    data: Any = program.experiment.data
    assert (data.batch, data.length) == (8, 32)
    whole = flatten_with_paths(make_program(experiment, jax.devices()).abstract.params)
    for path, leaf in flatten_with_paths(program.abstract.params).items():
        assert leaf.sharding.spec == whole[path].sharding.spec, path


def test_rows_and_lengths_of_a_shrunken_copy_divide_over_its_mesh() -> None:
    experiment = dataclasses.replace(
        load("pytext_llama"), mesh=Mesh(data=2, sequence=4), accumulate=3
    )
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, batch=48)
    )
    few = fewer(experiment, experiment.mesh.build().shape, 8)
    assert few.data.batch == 12 and few.data.length == 32  # type: ignore[attr-defined]
    assert [least(*numbers) for numbers in ((100, 8, 8), (100, 24, 8), (4, 8, 8), (100, 3, 8))] == [
        8,
        24,
        4,
        9,
    ]


def test_a_mesh_gets_as_many_devices_as_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    asked = [Mesh(), Mesh(data=2, fsdp=64), Mesh(data=-1, tensor=4), Mesh(data=-1, tensor=16)]
    asked.append(Mesh(data=1))
    assert [devices_for(mesh) for mesh in asked] == [8, 128, 8, 16, 1]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    assert [devices_for(mesh) for mesh in asked] == [4, 128, 4, 16, 1]


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (Mesh(data=0), "each axis is 1 or more"),
        (Mesh(data=-1, fsdp=-1), "one of them may be -1"),
        (Mesh(data=2, fsdp=512), "1,024 devices"),
    ],
    ids=str,
)
def test_a_mesh_that_cannot_be_played_is_refused(mesh: Mesh, words: str) -> None:
    with pytest.raises(Refused, match=words):
        devices_for(mesh)


def test_one_device_has_nothing_to_compare() -> None:
    with pytest.raises(Refused, match="one device"):
        check(small("digits_convnet", mesh=Mesh(data=1)))


def test_what_has_no_dtype_is_checked_in_float32() -> None:
    result = check(dataclasses.replace(load("digits_convnet"), mesh=SPLIT, model=Plain()))
    assert (result["dtype"], result["tolerance"], result["ok"]) == ("float32", 1e-4, True)


class Plain(nn.Module):
    """Logits of the mean of an image."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return Linear((10,), (None, "classes"))(x.mean(axis=(1, 2)))


class Unpinned(ConvNet):
    """A conv net without placement constraints: the partitioner places its arrays.

    Its loss is exact, and its gradient is wrong.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def placed(name: str, shape: tuple[int, ...], *axes: str | None) -> Any:
            return self.param(
                name, nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes), shape
            )

        kernel = placed("kernel", (3, 3, 1, 16), None, None, None, "mlp")
        layout: Any = ("NHWC", "HWIO", "NHWC")
        y = nn.relu(
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        )
        return y.mean(axis=(1, 2)) @ placed("head", (16, 16), "embed", "hidden")[:, : self.classes]


def test_a_planted_wrong_gradient_is_named() -> None:
    result = check(small("digits_convnet", mesh=SPLIT, model=Unpinned(layers=(), classes=10)))
    assert result["loss_relative_error"] < 1e-5 and result["dtype"] == "float32"
    assert (
        not result["ok"]
        and result["worst_parameter"] == "kernel"
        and result["gradient_relative_error"] > 0.1
    )


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


@pytest.mark.slow
def test_the_command_reports_the_worst_error_and_exits_by_it(jaxbig: Callable[..., Any]) -> None:
    tight = jaxbig("check", "diabetes_mlp", "--mesh.data", 2, "--tolerance", "1e-18", "--json")
    said = json.loads(tight.stdout)
    assert tight.returncode == 1 and said["ok"] is False and said["gradient_relative_error"] < 1e-13
    assert [each["ok"] for each in said["causes"]].count(True) == 4
    alone = jaxbig("check", "diabetes_mlp", "--mesh.data", 1)
    assert alone.returncode == 0 and "--mesh.data 8" in alone.stdout
