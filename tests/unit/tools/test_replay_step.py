"""A step again: exactly the run's, and where it is bad the operation that made it is named."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from unit.train.test_bad_steps import contents, tiny

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Failed, Refused
from jaxbig.models.layers.basic import Linear
from jaxbig.tools.nan_origin import bad_inputs, first_bad
from jaxbig.tools.replay_step import replay
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.trainer import fit

pytestmark = pytest.mark.usefixtures("shared_programs")
PLANTED = 57


class Logarithm(nn.Module):
    """Takes the logarithm of the images' means, which no sound image makes negative."""

    classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)
        x = x + jnp.log(x.mean(axis=1, keepdims=True) + 1)  # the line that is to be named
        return Linear((self.classes,), (None, "classes"), name="head")(x)


LINE = next(
    n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "to be named" in line
)


def run(*planted: tuple[int, float], model: Any = None, **changes: Any) -> Experiment:
    parent = tiny(*planted, steps=60, **{k: v for k, v in changes.items() if k == "policy"})
    changes = {"checkpoint_every": 25, **{k: v for k, v in changes.items() if k != "policy"}}
    return dataclasses.replace(parent, **({"model": model} if model else {}), **changes)


def test_a_good_step_is_made_again_to_the_bit_and_nothing_is_written(tmp_path: Path) -> None:
    experiment = run(log_every=1)
    fit(experiment, tmp_path, Screen())
    before = contents(tmp_path)
    for step, start in ((25, 0), (26, 25), (50, 25), (60, 50)):
        again = replay(experiment, tmp_path, step)
        logged = next(
            line
            for line in read_metrics(tmp_path)
            if line["step"] == step and line["split"] == "train"
        )
        assert again["from"] == start and again["metrics"].items() <= logged.items()
        assert again["saved_sha256"] == (None if step == 26 else again["state_sha256"])
        assert (again["fault"], again["bad"], again["operations"], again["left_out"]) == (
            "",
            [],
            [],
            False,
        )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("policy", "reproducible"),
    [
        ("stop", 8),
        ("skip", 0),
        pytest.param("stop", 0, marks=pytest.mark.slow),
        pytest.param("skip", 8, marks=pytest.mark.slow),
    ],
)
def test_the_operation_that_made_a_nan_is_named_by_its_line(
    policy: str, reproducible: int, tmp_path: Path
) -> None:
    experiment = run(
        (PLANTED, -1e3), policy=policy, model=Logarithm(classes=10), reproducible=reproducible
    )
    if policy == "stop":
        with pytest.raises(Failed, match=f"^step {PLANTED}: the loss is not finite"):
            fit(experiment, tmp_path, Screen())
    else:
        fit(experiment, tmp_path, Screen())
    again = replay(experiment, tmp_path, PLANTED)
    assert again["from"] == 50 and again["fault"] == "the loss is not finite" and again["bad"] == []
    [made] = again["operations"]
    assert (
        made["made"] == "nan"
        and made["operation"] == "log"
        and f"test_replay_step.py:{LINE} " in made["where"]
    )
    assert replay(experiment, tmp_path, PLANTED - 1)["operations"] == []


@pytest.mark.slow
def test_what_was_bad_before_any_operation_is_named_as_an_input(tmp_path: Path) -> None:
    experiment = run((PLANTED, float("nan")))
    with pytest.raises(Failed):
        fit(experiment, tmp_path, Screen())
    assert replay(experiment, tmp_path, PLANTED)["bad"] == ["batch/inputs"]


def test_a_batch_that_a_rollback_left_out_is_left_out_again(tmp_path: Path) -> None:
    experiment = run((PLANTED, float("nan")), policy="rollback")
    digest = fit(experiment, tmp_path, Screen())["state_sha256"]
    again = replay(experiment, tmp_path, PLANTED)
    assert again["left_out"] and again["metrics"] == {}
    assert replay(experiment, tmp_path, 60)["state_sha256"] == digest


def test_what_is_no_step_of_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="holds no run"):
        replay(run(), tmp_path, 1)
    fit(run(steps=5), tmp_path, Screen())
    for step in (0, 6):
        with pytest.raises(Refused, match="steps 1 to 5"):
            replay(run(steps=5), tmp_path, step)
    with pytest.raises(Refused, match="steps: 5 -> 6"):
        replay(run(steps=6), tmp_path, 5)


# -- the operation alone


def bad_operations(function: Any, *values: Any) -> list[tuple[str, str]]:
    found = first_bad(jax.jit(function).trace(*values).jaxpr, jax.tree.leaves(values))
    return [(each["made"], each["operation"]) for each in found]


def in_a_scan(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, turn: (carry + jnp.log(turn), carry), 0.0, x, reverse=True)[0]


def in_a_loop(x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sqrt(c[1] - 2)), (0, x[0])
    )[1]


def in_a_branch(x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0] > 0, jnp.exp, jnp.log, x).sum()


@pytest.mark.parametrize(
    ("function", "values", "made"),
    [
        (in_a_scan, [1.0, 2.0], []),
        (in_a_scan, [1.0, -2.0], [("nan", "log")]),
        (in_a_scan, [-1.0, 0.0], [("inf", "log"), ("nan", "log")]),  # from the end
        (in_a_loop, [8.0], [("nan", "sqrt")]),
        (in_a_branch, [1e3], [("inf", "exp")]),
        (in_a_branch, [-1e3], [("nan", "log")]),
        (
            jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sqrt(x))(x).sum()),
            [0.0],
            [("inf", "div")],
        ),
        (lambda x: jnp.where(x > 0, x, -jnp.inf).max(), [-1.0], []),  # written, not made
    ],
)
def test_the_first_operation_is_named(
    function: Any, values: list[float], made: list[tuple[str, str]]
) -> None:
    assert bad_operations(function, jnp.array(values)) == made


def test_bad_leaves_are_named_by_their_paths() -> None:
    bad = jnp.float32("-inf")
    assert bad_inputs(
        {"a": [jnp.ones(2), jnp.array([0, jnp.nan])], "b": jnp.arange(3), "c": bad}
    ) == ["a/1", "c"]
