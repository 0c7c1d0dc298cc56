"""A Hugging Face data set: the folder that `save_to_disk` of `datasets` wrote.

saved/, with the columns text and label
"""

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
    for row in jb.predict(run, split="eval")[:4]:
        print(f"is {row['target']}, predicted {row['class']}")


if __name__ == "__main__":
    main()
