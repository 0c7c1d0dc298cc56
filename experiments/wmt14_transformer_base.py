"""The base Transformer on WMT 2014 English to German (Vaswani et al., 2017, section 5).

    jaxbig train wmt14_transformer_base

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Pairs
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.language_model import EncoderDecoder
from jaxbig.objectives.seq2seq import Seq2Seq
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import WarmupInverseRoot


def config() -> Experiment:
    data = Pairs(
        records=Tfds("wmt14_translate/de-en", eval_split="validation"),
        tokenizer=BytePairs(vocab=37_000, specials=("<start>", "<end>")),
        source_feature="en",
        target_feature="de",
        batch=512,
        length=128,
    )
    return Experiment(
        model=EncoderDecoder(
            vocab=data.vocab, depth=6, width=512, heads=8, dropout=0.1, dtype="bfloat16"
        ),
        objective=Seq2Seq(
            vocab=data.vocab, start=data.start, end=data.end, smoothing=0.1, bleu=True
        ),
        data=data,
        optimizer=Adam(
            learning_rate=WarmupInverseRoot(peak=7e-4, warmup=4_000), b2=0.98, epsilon=1e-9
        ),
        mesh=Mesh(data=-1),
        steps=100_000,
        evaluate_every=5_000,
        checkpoint_every=5_000,
    )
