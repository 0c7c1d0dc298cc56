"""Our scanned LSTM against `flax.linen.RNN(OptimizedLSTMCell)`: forward and backward, alternately, medians.

    python benchmarks/lstm.py

Prints milliseconds of each and the ratio theirs / ours, per number of layers.
"""

import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.models.rnn import Recurrence

WIDTH, LENGTH, BATCH, ROUNDS = 128, 100, 128, 15


class Flax(nn.Module):
    """The same stack from Flax's own parts."""

    layers: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)
        return x


def seconds(step: Any, *inputs: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(step(*inputs))
    return time.perf_counter() - begin


def compiled(module: nn.Module, x: jax.Array) -> tuple[Any, Any]:
    """The jitted gradient of a sum over all states, by parameters and input, and the initial parameters."""

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        states = module.apply(variables, x)
        return jnp.mean(jnp.square(states[0] if isinstance(states, tuple) else states))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), nn.meta.unbox(
        jax.jit(module.init)(jax.random.key(0), x)
    )


def main() -> None:
    x = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    print(
        f"width {WIDTH}, {LENGTH} steps, batch {BATCH}, {jax.devices()[0].device_kind}, median of {ROUNDS} rounds"
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
