"""BERT-base, pre-trained by `wikipedia_bert_base`, fine-tuned on SST-2 (Devlin et al., 2019,
section 4.1).

    jaxbig train sst2_bert

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses
from typing import Any

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Sentences
from jaxbig.experiments import wikipedia_bert_base
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear

BEFORE = "runs/wikipedia_bert_base"


def config() -> Experiment:
    parent = wikipedia_bert_base.config()
    learned: Any = parent.data
    tokenizer = dataclasses.replace(learned.tokenizer, file=f"{BEFORE}/tokenizer.json")
    data = Sentences(
        records=Tfds("glue/sst2", eval_split="validation"),
        tokenizer=tokenizer,
        feature="sentence",
        batch=32,
        length=128,
        classes=2,
    )
    return dataclasses.replace(
        parent,
        model=parent.model.clone(classes=data.classes, pooling="mean"),
        objective=Classification(classes=data.classes),
        data=data,
        initialize_from=InitializeFrom(run=BEFORE, pattern="^(tokens|positions|types|norm|blocks)"),
        optimizer=AdamW(
            learning_rate=WarmupLinear(peak=2e-5, warmup=630), weight_decay=0.01, clip_norm=1.0
        ),
        steps=6_300,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
