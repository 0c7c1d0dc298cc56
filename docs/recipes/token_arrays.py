"""Token arrays: numbers of tokens, padded as Keras pads them, with a class each.

tokens.npz, with the arrays inputs [n, 32] and label [n]
"""

import numpy as np

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.TokenArrays(
        records=jb.data.Arrays(file="tokens.npz", eval_share=0.25),
        length=32,
        vocab=50,
        classes=2,
        batch=8,
    )
    model = jb.models.Encoder(vocab=50, depth=2, width=32, heads=4, classes=2, pooling="mean")
    return jb.Experiment(
        model=model,
        objective=jb.objectives.Classification(classes=2),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=1e-3, warmup=20)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/tokens")
    rows = run.experiment.data.source("eval").rows(np.arange(4))
    best = jb.apply(run, rows).argmax(-1)
    print(f"are {rows['targets']}, predicted {best}")


if __name__ == "__main__":
    main()
