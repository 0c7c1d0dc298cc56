"""A table: a CSV file with a column to predict.

flowers.csv
  length,width,kind
  5.1,3.5,iris
  4.9,,rose
"""

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Columns(
        records=jb.data.Csv(files="flowers.csv", eval_share=0.25, fill=(("width", "0"),)),
        inputs=("length", "width"),
        shape=(2,),
        targets="kind",
        classes=3,
        normalize=True,
        batch=16,
    )
    return jb.Experiment(
        model=jb.models.MLP(widths=(64,), outputs=3),
        objective=jb.objectives.Classification(classes=3),
        data=data,
        optimizer=jb.optim.AdamW(learning_rate=jb.optim.WarmupCosine(peak=1e-2, warmup=10)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/table")
    [row] = jb.predict(run, {"length": 4.8, "width": 9.9})  # normalized as in training
    print(f"predicted {row['class']}")


if __name__ == "__main__":
    main()
