"""GPT-2 as it was published (Radford et al., 2019), fine-tuned to write IMDB's film reviews.

    jaxbig data prepare imdb_gpt2_finetune
    jaxbig train imdb_gpt2_finetune
    jaxbig generate imdb_gpt2_finetune --prompt 'The best scene of this film'

It starts from the folder `gpt2` as transformers has it, with `config.json`, `model.safetensors` and
`tokenizer.json`; for another give `--initialize-from.huggingface` and `--data.tokenizer.file`. Full
size, not run here; `--smoke` tries it without data and folder.
"""

import dataclasses

from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.experiments import c4_gpt2_124m
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear

FOLDER = "gpt2"


def config() -> Experiment:
    parent = c4_gpt2_124m.config()
    data = Tokens(
        records=Tfds("imdb_reviews", train_split="train+unsupervised"),
        tokenizer=BytePairs(
            vocab=50_257, file=f"{FOLDER}/tokenizer.json", specials=("<|endoftext|>",)
        ),
        batch=32,
        length=1024,
        packed=True,
    )
    return dataclasses.replace(
        parent,
        model=parent.model.clone(dropout=0.1),
        data=data,
        initialize_from=InitializeFrom(huggingface=FOLDER),
        optimizer=AdamW(
            learning_rate=WarmupLinear(peak=5e-5, warmup=200), weight_decay=0.01, clip_norm=1.0
        ),
        steps=2_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
