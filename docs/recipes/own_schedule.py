"""A schedule of your own: half a cosine, again and again (Loshchilov and Hutter, 2017)."""

import dataclasses

import jax.numpy as jnp
import optax

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class WarmRestarts(jb.optim.Schedule):
    """From `peak` to 0 in each period."""

    peak: float
    """The rate at the start of a period."""
    period: int = 100
    """Steps of a period."""

    def build(self, steps: int) -> optax.Schedule:
        def rate(step):
            share = step % self.period / self.period
            return self.peak / 2 * (1 + jnp.cos(jnp.pi * share))

        return rate


def config() -> jb.Experiment:
    optimizer = jb.optim.AdamW(learning_rate=WarmRestarts(peak=2e-3), weight_decay=0.05)
    return jb.load("digits_convnet").replace(optimizer=optimizer, steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/restarts")
    print(f"accuracy {run.metrics['eval/accuracy']:.3f}")


if __name__ == "__main__":
    main()
