"""Numbers in Parquet: regression on some columns.

houses/*.parquet, with the columns area, rooms, age and price

Targets are not scaled: divide prices so that they are near 1, or raise the learning rate.
"""

import numpy as np

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
    # or jb.apply(run, [{"area": 0.5, "rooms": 0.2, "age": 0.9}])
    rows = run.experiment.data.source("eval").rows(np.arange(4))
    prices = jb.apply(run, rows["inputs"])
    for target, answer in zip(rows["targets"], prices.ravel(), strict=True):
        print(f"is {target:.2f}, predicted {answer:.2f}")


if __name__ == "__main__":
    main()
