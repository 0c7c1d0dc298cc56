"""BERT-base on Wikipedia: masked tokens (Devlin et al., 2019; without next-sentence prediction, as
Liu et al., 2019).

    jaxbig train wikipedia_bert_base

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import TokenRows
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.language_model import Encoder
from jaxbig.objectives.masked_token import MaskedToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear


def config() -> Experiment:
    data = TokenRows(
        records=Tfds("wikipedia/20230601.en", train_split="train[1%:]", eval_split="train[:1%]"),
        tokenizer=BytePairs(vocab=30_522, specials=("<end>", "<mask>")),
        batch=256,
        length=512,
    )
    return Experiment(
        model=Encoder(
            vocab=data.vocab, depth=12, width=768, heads=12, types=2, dropout=0.1, dtype="bfloat16"
        ),
        objective=MaskedToken(vocab=data.vocab, mask_token=data.mask_token),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupLinear(peak=1e-4, warmup=10_000), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=1_000_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
