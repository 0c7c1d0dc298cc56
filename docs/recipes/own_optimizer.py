"""Optimizers of your own: Lion (Chen et al., 2023) as a class, and Muon of optax by its name."""

import dataclasses

import optax

import jaxbig as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(jb.optim.Optimizer):
    """The sign of the momentum (Chen et al., 2023)."""

    b1: float = 0.9
    """Share of the momentum in the update."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.0
    """Each step takes `learning_rate * weight_decay * w` off each chosen parameter w."""

    def direction(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_lion(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )


def config() -> jb.Experiment:
    rate = jb.optim.WarmupCosine(peak=3e-4, warmup=50)
    lion = Lion(learning_rate=rate, weight_decay=0.1)
    return jb.load("digits_convnet").replace(optimizer=lion, steps=300)


def muon() -> jb.Experiment:
    """The same with Muon, which optax has: no class is needed."""
    rate = jb.optim.WarmupCosine(peak=2e-2, warmup=50)
    return config().replace(optimizer=jb.optim.Optax(name="contrib.muon", learning_rate=rate))


def main() -> None:
    for name, experiment in (("lion", config()), ("muon", muon())):
        run = jb.fit(experiment, f"runs/{name}")
        print(f"{name}: accuracy {run.metrics['eval/accuracy']:.3f}")


if __name__ == "__main__":
    main()
