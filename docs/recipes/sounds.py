"""Sounds: a folder with a folder for each class, of WAV, FLAC or OGG files.

sounds/
  bird/  1.wav 2.wav ...
  dog/   1.wav 2.wav ...

Needs `pip install 'jaxbig[audio]'`.
"""

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
    for row in jb.predict(run, "sounds/dog/*0.wav"):
        print(f"{row['record']} is predicted to be a {row['class']}")


if __name__ == "__main__":
    main()
