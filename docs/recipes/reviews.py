"""JSON lines: texts with a label each.

reviews.jsonl
  {"text": "a fine film", "label": "good"}
  {"text": "two hours too long", "label": "bad"}
"""

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Sentences(
        records=jb.data.JsonLines(files="reviews.jsonl", eval_share=0.25),
        length=32,
        classes=3,
        batch=8,
    )
    model = jb.models.RNN(
        vocab=data.vocab, width=32, bidirectional=True, pooling="attention", classes=3
    )
    return jb.Experiment(
        model=model,
        objective=jb.objectives.Classification(classes=3, macro=True),
        data=data,
        optimizer=jb.optim.AdamW(
            learning_rate=jb.optim.WarmupCosine(peak=3e-3, warmup=20), clip_norm=1.0
        ),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/reviews")
    for row in jb.predict(run, ["a fine film", "two hours too long"]):
        print(f"predicted {row['class']}, {row['probability']:.0%}")


if __name__ == "__main__":
    main()
