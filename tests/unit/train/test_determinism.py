"""Two steps made twice: equal bits change nothing, and what differs is named."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbig as jb
from jaxbig.checkpoint.digest import digests
from jaxbig.errors import Failed
from jaxbig.program.program import make_program
from jaxbig.train.determinism import first_differing, prove_determinism
from jaxbig.train.trainer import compile_step

PROVED = jb.Guard(prove_determinism=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": jb.Mesh(data=8)},
        {"mesh": jb.Mesh(data=2, fsdp=4)},
        {"mesh": jb.Mesh(data=8), "offload": True},
    ],
    ids=["data", "fsdp", "offload"],
)
def test_proved_run_is_the_same_run(
    tiny: Callable[..., jb.Experiment], tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = [
        digests(jb.fit(tiny(guard=guard, **changes), tmp_path / name).state)
        for name, guard in (("plain", jb.Guard()), ("proved", PROVED))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("changes", [{}, {"reproducible": 8}], ids=["plain", "reproducible"])
def test_leaf_that_differs_is_named(
    tiny: Callable[..., jb.Experiment], changes: dict[str, Any]
) -> None:
    experiment = tiny(**changes)
    program = make_program(experiment)
    batch = jax.tree.map(
        lambda spec: np.zeros(spec.shape, spec.dtype), dict(experiment.data.spec())
    )
    steps = itertools.count(1)
    with program.activate():
        train_step, _ = compile_step(program)

        def step(state: Any, batch: Any) -> Any:
            state, metrics = train_step(state, batch)
            if next(steps) == 4:
                leaves, tree = jax.tree.flatten(state.params)
                changed = [leaves[0].at[0].add(1e-6), *leaves[1:]]
                state = state.replace(params=jax.tree.unflatten(tree, changed))
            return state, metrics

        words = "2 steps were made twice .* 1 of .* the first in params/.*bias. No operation"
        with pytest.raises(Failed, match=words):
            prove_determinism(program, step, program.init(), [batch, batch])


def test_operation_that_gives_other_numbers_is_named() -> None:
    calls = itertools.count()

    def step(x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((), jnp.float32)

        def turn(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
            return carry + jax.pure_callback(lambda: np.float32(next(calls)), shape), row

        return jax.lax.scan(turn, jnp.sum(jnp.sin(x)), x)[0]

    x = jnp.arange(3.0)
    named = first_differing(jax.make_jaxpr(step)(x), [x])
    assert "The first operation that differs is pure_callback at " in named
    assert "test_determinism.py" in named
    same = first_differing(jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x)))(x), [x])
    assert same == ". No operation differs when it is made alone, so it is a fused one"
