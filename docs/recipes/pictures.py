"""Pictures: a folder with a folder for each class.

pictures/
  forest/  1.jpg 2.jpg ...
  sea/     1.jpg 2.jpg ...
"""

import jaxbig as jb


def config() -> jb.Experiment:
    records = jb.data.ImageFolder(folder="pictures", eval_share=0.25)
    classes = len(records.classes)
    data = jb.data.Images(
        records=records,
        classes=classes,
        batch=8,
        size=32,
        canvas=64,  # pictures of any size enter the step in a square of 64 pixels,
        augment=(jb.data.ResizedCrop(least=0.3), jb.data.Flip()),  # and are cropped there
        center=(jb.data.CentralCrop(),),
    )
    layers = (jb.models.Conv(32), jb.models.Pool(), jb.models.Conv(64), jb.models.Pool())
    return jb.Experiment(
        model=jb.models.ConvNet(layers=layers, classes=classes),
        objective=jb.objectives.Classification(classes=classes),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=1e-3, warmup=20)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/pictures")
    for row in jb.predict(run, ["pictures/sea", "pictures/forest/0.png"]):  # of any size
        print(f"{row['record']} is predicted to be {row['class']}")


if __name__ == "__main__":
    main()
