"""Llama 2 7B (Touvron et al., 2023) on C4.

    jaxbig train c4_llama_7b

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.language_model import Decoder
from jaxbig.objectives.next_token import NextToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Tokens(
        records=Tfds("c4/en", eval_split="validation"),
        tokenizer=BytePairs(vocab=32_000),
        batch=1024,
        length=4096,
        packed=True,
    )
    return Experiment(
        model=Decoder(
            vocab=data.vocab,
            depth=32,
            width=4096,
            heads=32,
            mlp_width=11_008,
            activation="swiglu",
            epsilon=1e-5,
            scan=True,
            remat="full",
            joint_key_value=False,
            dtype="bfloat16",
        ),
        objective=NextToken(vocab=data.vocab, chunks=8),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=3e-4, warmup=2_000, end=3e-5),
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        mesh=Mesh(data=1, fsdp=-1),
        steps=500_000,
        evaluate_every=5_000,
        checkpoint_every=1_000,
    )
