"""Random streams: one for each seed, name and step, with fixed keys."""

import jax
import jax.numpy as jnp
import numpy as np
from support.compiling import fully
from support.experiments import small

from jaxbig.distributed.mesh import Mesh
from jaxbig.program import rng
from jaxbig.program.program import make_program
from jaxbig.system.environment import init_compiler_options


def data(key: jax.Array) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).tolist())


def test_streams_differ_by_seed_name_and_step() -> None:
    names = ("init", "dropout", "objective", "evaluation")
    seeds = (0, 1, 2**32 - 1)
    steps = (0, 1, 1_000_000)
    streams = [data(rng.stream(seed, name)) for seed in seeds for name in names]
    streams += [
        data(rng.at_step(seed, name, step)) for seed in seeds for name in names for step in steps
    ]
    assert len(set(streams)) == len(streams) == 3 * 4 * 4


def test_streams_are_what_they_always_were() -> None:
    assert data(rng.stream(0, "init")) == (3020537540, 2946840664)
    assert data(rng.stream(1, "dropout")) == (1161922192, 2353339733)
    assert data(rng.at_step(0, "dropout", 7)) == (2631462806, 2197055503)


def test_a_step_on_the_device_has_the_key_of_its_number() -> None:
    on_device = jax.jit(lambda step: jax.random.key_data(rng.at_step(3, "dropout", step)))(
        jnp.int32(7)
    )
    assert tuple(on_device.tolist()) == data(rng.at_step(3, "dropout", 7))


def test_first_parameters_have_the_bits_of_the_compiler_with_all_optimizations() -> None:
    with fully():
        experiment = small("digits_convnet", mesh=Mesh(data=1))
        program = make_program(experiment, jax.devices()[:1])
        assert init_compiler_options(program.mesh)
        with program.activate():
            lowered = program.init.lower()
            found = lowered.compile()().params
            expected = lowered.compile({"xla_backend_optimization_level": "3"})().params
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))
