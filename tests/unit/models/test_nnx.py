"""NNX modules as models, through `ToLinen`; and layers of Flax that name no axes."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import identity
from jaxbig.config.serialize import to_json
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.program import rng
from jaxbig.program.program import make_init, make_program, unsharded_matrices


class Net(nnx.Module):
    """A hidden layer with BatchNorm and dropout."""

    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.norm(self.first(x.reshape(x.shape[0], -1)), use_running_average=not train)
        return self.last(self.dropout(jax.nn.relu(x), deterministic=not train))


def experiment(width: int = 16, **changes: Any) -> Experiment:
    model = nnx.bridge.ToLinen(Net, args=(width, 10))
    return small("digits_convnet", model=model, **changes)


def test_an_nnx_module_is_trained() -> None:
    program = make_program(experiment())
    source = program.experiment.data.source("train")
    with program.activate():
        state = program.init()
        before = jax.device_get(flatten_with_paths(state))
        rows = train_batch(source, 0, seed=0, batch=program.experiment.data.batch)
        batch = device_put_batch(rows, program.mesh)
        for _ in range(2):  # the rate of the first step is 0
            state, metrics = program.train_step(state, batch)
    after = jax.device_get(flatten_with_paths(state))
    assert np.isfinite(metrics["loss"])
    for path in ("params/first/kernel", "params/last/bias", "variables/batch_stats/norm/mean"):
        assert np.any(before[path] != after[path]), path


def test_an_nnx_module_is_described_by_its_name_and_arguments() -> None:
    described = to_json(experiment().model)
    assert described == {
        "type": "ToLinen",
        "nnx_class": "Net",
        "args": [16, 10],
        "kwargs": {},
        "skip_rng": False,
    }
    one, other = (identity(to_json(experiment(width)), "x") for width in (16, 8))
    assert one != other


def test_an_nnx_module_itself_is_refused_with_the_way_to_give_it() -> None:
    model: Any = Net(16, 10, rngs=nnx.Rngs(0))
    with pytest.raises(Refused, match=r"model is Net, an NNX module: .*ToLinen\(Net, args="):
        small("digits_convnet", model=model)


@pytest.mark.parametrize(
    "name", ["digits_rnn", pytest.param("pytext_transformer", marks=pytest.mark.slow)]
)
def test_first_parameters_are_those_of_the_stream_params_alone(name: str) -> None:
    each = small(name)
    zeros = {k: np.zeros(s.shape, s.dtype) for k, s in each.data.spec().items()}
    key = rng.stream(each.seed, "init")
    init = nn.init(lambda forward: each.objective(forward, zeros, key, False), each.model)
    expected = flatten_with_paths(nn.meta.unbox(init({"params": key}))["params"])
    found = flatten_with_paths(nn.meta.unbox(make_init(each)())["params"])
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_only_matrices_that_name_no_axes_are_reported_and_only_where_a_mesh_shards() -> None:
    sharding = Mesh(data=4, fsdp=2)
    found = unsharded_matrices(make_program(experiment(mesh=sharding)))
    assert sorted(found) == ["first/kernel", "last/kernel"]
    assert unsharded_matrices(make_program(experiment(mesh=Mesh(data=8)))) == []
    assert unsharded_matrices(make_program(small("digits_convnet", mesh=sharding))) == []
