"""A Hugging Face data set: the folder that `save_to_disk` of `datasets` wrote.

saved/, with the columns text and label
"""

import numpy as np

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Sentences(
        records=jb.data.HuggingFace(folder="saved"), length=32, classes=2, batch=8
    )
    return jb.Experiment(
        model=jb.models.RNN(vocab=data.vocab, width=32, pooling="mean", classes=2),
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=3e-3, warmup=20)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/saved")
    rows = run.experiment.data.source("eval").rows(np.arange(4))
    best = jb.apply(run, rows).argmax(-1)
    print(f"are {rows['targets']}, predicted {best}")


if __name__ == "__main__":
    main()
