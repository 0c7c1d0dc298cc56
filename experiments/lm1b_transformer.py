"""A decoder of six blocks on the One Billion Word Benchmark (Chelba et al., 2013).

    jaxbig train lm1b_transformer

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
from jaxbig.optim.schedules import WarmupInverseRoot


def config() -> Experiment:
    data = Tokens(
        records=Tfds("lm1b"), tokenizer=BytePairs(vocab=30_000), batch=256, length=128, packed=True
    )
    return Experiment(
        model=Decoder(vocab=data.vocab, depth=6, width=512, heads=8, dropout=0.1, dtype="bfloat16"),
        objective=NextToken(vocab=data.vocab),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupInverseRoot(peak=1.6e-3, warmup=1_000), b2=0.98, weight_decay=0.1
        ),
        mesh=Mesh(data=-1),
        steps=500_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
