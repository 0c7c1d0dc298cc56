"""BERT-base on Wikipedia: masked tokens (Devlin et al., 2019; without next-sentence prediction, as Liu et al., 2019).

    jaxbig train wikipedia_bert_base

Full size, not run here: its tokenizer is not there yet, so `train` refuses it; `show` tells what it is.
"""

from jaxbig.data.tfds import TokenRows
from jaxbig.experiment import Experiment
from jaxbig.mesh import Mesh
from jaxbig.models.language import Encoder
from jaxbig.objectives.masked_token import MaskedToken
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupLinear


def config() -> Experiment:
    data = TokenRows(
        name="wikipedia/20230601.en",
        batch=256,
        length=512,
        vocab=30_522,
        train_split="train[1%:]",
        eval_split="train[:1%]",
    )
    return Experiment(
        model=Encoder(vocab=data.vocab, depth=12, width=768, heads=12, types=2, dropout=0.1, dtype="bfloat16"),
        objective=MaskedToken(vocab=data.vocab, mask_token=103),
        data=data,
        optimizer=AdamW(rate=WarmupLinear(peak=1e-4, warmup=10_000), weight_decay=0.01, clip=1.0),
        mesh=Mesh(data=-1),
        steps=1_000_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
