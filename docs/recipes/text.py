"""Text: a language model of your own files, which then writes.

notes/*.txt
"""

import numpy as np

import jaxbig as jb


def config() -> jb.Experiment:
    data = jb.data.Tokens(
        records=jb.data.TextFiles(files="notes/*.txt", eval_share=0.25), length=64, batch=8
    )
    return jb.Experiment(
        model=jb.models.Decoder(vocab=data.vocab, depth=2, width=64, heads=4),
        objective=jb.objectives.NextToken(vocab=data.vocab, bytes_per_token=1.0),
        data=data,
        optimizer=jb.optim.AdamW(
            learning_rate=jb.optim.WarmupCosine(peak=3e-3, warmup=20), clip_norm=1.0
        ),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def main() -> None:
    run = jb.fit(config(), "runs/notes")
    data = run.experiment.data
    tokens = list(data.tokenizer.encode(b"The "))
    for _ in range(20):  # the most probable token, again and again
        row = np.zeros((1, data.length), np.int32)
        row[0, : len(tokens)] = tokens
        logits = jb.apply(run, row)  # [1, length, vocab]
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    print(data.text(np.array(tokens)))


if __name__ == "__main__":
    main()
