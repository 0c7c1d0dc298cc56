"""Token arrays: numbers of tokens, padded as Keras pads them, with a class each.

tokens.npz, with the arrays inputs [n, 32] and label [n]
"""

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
    for row in jb.predict(run, split="eval")[:4]:
        print(f"is {row['target']}, predicted {row['class']}")


if __name__ == "__main__":
    main()
