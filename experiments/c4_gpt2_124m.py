"""GPT-2 of 124 million parameters (Radford et al., 2019) on C4.

    jaxbig train c4_gpt2_124m

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
        tokenizer=BytePairs(vocab=50_257),
        batch=512,
        length=1024,
        packed=True,
    )
    return Experiment(
        model=Decoder(
            vocab=data.vocab,
            depth=12,
            width=768,
            heads=12,
            norm="layer",
            epsilon=1e-5,
            bias=True,
            positions="learned",
            max_length=1024,
            tie_embeddings=True,
            dtype="bfloat16",
        ),
        objective=NextToken(vocab=data.vocab, chunks=29),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=6e-4, warmup=2_000, end=6e-5),
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        mesh=Mesh(data=-1),
        steps=600_000,
        evaluate_every=5_000,
        checkpoint_every=5_000,
    )
