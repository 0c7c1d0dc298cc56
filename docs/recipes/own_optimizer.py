"""Optimizers of your own: Signum (Bernstein et al., 2018) as a class, AdaBelief by its name."""

import dataclasses

import optax

import jaxbig as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signum(jb.optim.Optimizer):
    """The sign of the momentum."""

    momentum: float = 0.9
    """Decay of the sum of gradients."""
    weight_decay: float = 0.0
    """Each step takes `learning_rate * weight_decay * w` off each chosen parameter w."""

    def direction(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.trace(self.momentum),
            optax.scale_by_sign(),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )


def config() -> jb.Experiment:
    rate = jb.optim.WarmupCosine(peak=3e-4, warmup=50)
    signum = Signum(learning_rate=rate, weight_decay=0.1)
    return jb.load("digits_convnet").replace(optimizer=signum, steps=300)


def adabelief() -> jb.Experiment:
    """The same with AdaBelief, which optax has: no class is needed."""
    rate = jb.optim.WarmupCosine(peak=1e-3, warmup=50)
    return config().replace(optimizer=jb.optim.Optax(name="adabelief", learning_rate=rate))


def main() -> None:
    for name, experiment in (("signum", config()), ("adabelief", adabelief())):
        run = jb.fit(experiment, f"runs/{name}")
        print(f"{name}: accuracy {run.metrics['eval/accuracy']:.3f}")


if __name__ == "__main__":
    main()
