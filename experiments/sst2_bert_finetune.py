"""BERT-base as it was published, fine-tuned on SST-2 (Devlin et al., 2019, section 4.1).

    jaxbig data prepare sst2_bert_finetune
    jaxbig train sst2_bert_finetune

It starts from the folder `bert-base-uncased` as transformers has it, with `config.json`,
`model.safetensors` and `tokenizer.json`; for another give `--initialize-from.huggingface` and
`--data.tokenizer.file`. `sst2_bert` starts from a run of our own instead. Full size, not run here;
`--smoke` tries it without data and folder.
"""

import dataclasses

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Sentences
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.experiments import wikipedia_bert_base
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear

FOLDER = "bert-base-uncased"


def config() -> Experiment:
    parent = wikipedia_bert_base.config()
    data = Sentences(
        records=Tfds("glue/sst2", eval_split="validation"),
        tokenizer=BytePairs(
            vocab=30_522, file=f"{FOLDER}/tokenizer.json", specials=("[CLS]", "[SEP]", "[PAD]")
        ),
        feature="sentence",
        start_token=True,
        batch=32,
        length=128,
        classes=2,
    )
    return dataclasses.replace(
        parent,
        model=parent.model.clone(classes=data.classes),
        objective=Classification(classes=data.classes),
        data=data,
        initialize_from=InitializeFrom(huggingface=FOLDER),
        optimizer=AdamW(
            learning_rate=WarmupLinear(peak=2e-5, warmup=630), weight_decay=0.01, clip_norm=1.0
        ),
        steps=6_300,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
