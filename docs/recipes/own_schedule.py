"""A schedule of your own: up in a line, constant, and down at the end (Hägele et al., 2024)."""

import dataclasses

import optax

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class Trapezoid(jb.optim.Schedule):
    """Warmup, a constant rate, and a cooldown to 0."""

    peak: float
    """The rate between."""
    warmup: int = 50
    """Steps up to it."""
    cooldown: float = 0.2
    """Share of the run in which it falls."""

    def build(self, steps: int) -> optax.Schedule:
        warmup = min(self.warmup, steps)
        down = int(self.cooldown * steps)
        rise = optax.linear_schedule(0.0, self.peak, max(warmup, 1))
        fall = optax.linear_schedule(self.peak, 0.0, max(down, 1))
        constant = optax.constant_schedule(self.peak)
        return optax.join_schedules([rise, constant, fall], [warmup, max(warmup, steps - down)])


def config() -> jb.Experiment:
    optimizer = jb.optim.AdamW(learning_rate=Trapezoid(peak=2e-3), weight_decay=0.05)
    return jb.load("digits_convnet").replace(optimizer=optimizer, steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/trapezoid")
    print(f"accuracy {run.metrics['eval/accuracy']:.3f}")


if __name__ == "__main__":
    main()
