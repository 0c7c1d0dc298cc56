"""BERT-base, pre-trained by `wikipedia_bert_base`, fine-tuned on SQuAD 1.1 (Devlin et al., 2019,
section 4.2).

    jaxbig train squad_bert

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses
from typing import Any

from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.questions import Questions
from jaxbig.data.records.tfds import Tfds
from jaxbig.evaluators.answers import Answers
from jaxbig.experiments import wikipedia_bert_base
from jaxbig.objectives.span import Span
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear

BEFORE = "runs/wikipedia_bert_base"


def config() -> Experiment:
    parent = wikipedia_bert_base.config()
    learned: Any = parent.data
    data = Questions(
        records=Tfds("squad/v1.1", eval_split="validation"),
        tokenizer=dataclasses.replace(learned.tokenizer, file=f"{BEFORE}/tokenizer.json"),
        batch=32,
        length=384,
    )
    return dataclasses.replace(
        parent,
        model=parent.model.clone(classes=2, pooling="none"),
        objective=Span(),
        data=data,
        initialize_from=InitializeFrom(run=BEFORE, pattern="^(tokens|positions|types|norm|blocks)"),
        optimizer=AdamW(
            learning_rate=WarmupLinear(peak=5e-5, warmup=800), weight_decay=0.01, clip_norm=1.0
        ),
        evaluators=(Every(1_000, Answers()),),
        steps=8_200,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
