"""Sounds: a folder with a folder for each class, of WAV, FLAC or OGG files.

sounds/
  bird/  1.wav 2.wav ...
  dog/   1.wav 2.wav ...

Needs `pip install 'jaxbig[audio]'`.
"""

import numpy as np

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Sounds(
        records=jb.data.AudioFolder(folder="sounds", eval_share=0.25),
        samples=8_000,  # half a second at 16 kHz
        classes=2,
        batch=8,
    )
    layers = (jb.models.Conv(16), jb.models.Pool(), jb.models.Conv(32), jb.models.Pool())
    return jb.Experiment(
        model=jb.models.ConvNet(layers=layers, classes=2),
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=1e-3, warmup=20)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/sounds")
    data = run.experiment.data
    source = data.source("eval")
    rows = source.rows(np.linspace(0, len(source) - 1, 4).astype(int))  # four, evenly spread
    for target, answer in zip(rows["targets"], jb.apply(run, rows).argmax(-1), strict=True):
        print(f"is {data.names[target]}, predicted {data.names[answer]}")


if __name__ == "__main__":
    main()
