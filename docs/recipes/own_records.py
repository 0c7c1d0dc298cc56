"""Records of your own: one dataclass with one method."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxbig as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waves(jb.data.Records):
    """Sine waves, classified by their pitch."""

    count: int = 64
    """Number of waves of each split."""

    def open(self, split: str) -> Sequence[dict[str, Any]]:
        draw = np.random.default_rng(split == "eval")
        seconds = np.arange(16_000) / 16_000
        return [
            {"audio": np.sin(2 * np.pi * pitch * seconds), "label": int(pitch > 1_000)}
            for pitch in draw.uniform(100, 4_000, self.count)
        ]


def config() -> jb.Experiment:
    data = jb.data.Sounds(records=Waves(), classes=2, batch=8)
    layers = (jb.models.Conv(8), jb.models.Pool(4), jb.models.Conv(8), jb.models.Pool(4))
    return jb.Experiment(
        model=jb.models.ConvNet(layers=layers, classes=2),
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=3e-3, warmup=10)),
        steps=100,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/waves")
    tone = np.sin(2 * np.pi * 3_000 * np.arange(16_000) / 16_000)
    [logits] = jb.apply(run, tone[None])
    print("above 1,000 Hz" if logits[1] > logits[0] else "below 1,000 Hz")


if __name__ == "__main__":
    main()
