"""Speed of the scanned LSTM compared with `flax.linen.RNN(OptimizedLSTMCell)`.

    python benchmarks/lstm.py

Prints median milliseconds of a forward and backward pass, and the ratio flax / ours, by layers.
The two are timed in turn.
"""

import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.models.rnn import Recurrence

WIDTH = 128
LENGTH = 100
BATCH = 128
ROUNDS = 15


class Flax(nn.Module):
    """The same model built from Flax's own layers."""

    layers: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)
        return x


def seconds(step: Any, *inputs: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(step(*inputs))
    return time.perf_counter() - started


def compiled(module: nn.Module, x: jax.Array) -> tuple[Any, Any]:
    """The jitted gradient of a loss by parameters and input, and the initial parameters."""

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        states = module.apply(variables, x)
        return jnp.mean(jnp.square(states[0] if isinstance(states, tuple) else states))

    variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), variables


def main() -> None:
    x = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    print(
        f"width {WIDTH}, {LENGTH} steps, batch {BATCH}, {jax.devices()[0].device_kind}, "
        f"median of {ROUNDS} rounds"
    )
    print("layers   ours ms   flax ms   ratio")
    for layers in (1, 2):
        pairs = [compiled(Recurrence(width=WIDTH, layers=layers), x), compiled(Flax(layers), x)]
        for step, variables in pairs:
            seconds(step, variables, x)
        rounds = [[seconds(step, variables, x) for step, variables in pairs] for _ in range(ROUNDS)]
        ours, flax = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(theirs / mine for mine, theirs in rounds)
        print(f"{layers:6d} {ours:9.1f} {flax:9.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
