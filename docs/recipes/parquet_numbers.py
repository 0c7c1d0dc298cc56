"""Numbers in Parquet: regression on some columns.

houses/*.parquet, with the columns area, rooms, age and price

Targets are not scaled: divide prices so that they are near 1, or raise the learning rate.
"""

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Columns(
        records=jb.data.Parquet(files="houses/*.parquet", eval_share=0.2),
        inputs=("area", "rooms", "age"),
        shape=(3,),
        targets="price",
        normalize=True,
        batch=16,
    )
    return jb.Experiment(
        model=jb.models.MLP(widths=(64, 64)),
        objective=jb.objectives.Regression(),
        data=data,
        optimizer=jb.optim.Adam(learning_rate=jb.optim.WarmupCosine(peak=1e-2, warmup=10)),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/houses")
    # or jb.predict(run, "new.parquet"), or {"area": 0.5, "rooms": 0.2, "age": 0.9}
    for row in jb.predict(run, split="eval")[:4]:
        print(f"is {row['target']:.2f}, predicted {row['value']:.2f}")


if __name__ == "__main__":
    main()
