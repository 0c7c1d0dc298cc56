"""T5-small, from scratch, on summaries of CNN and Daily Mail's articles (Raffel et al., 2020).

    jaxbig train cnn_dailymail_t5_small

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.evaluator import Every
from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Pairs
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.mesh import Mesh
from jaxbig.evaluators.generation import Generation
from jaxbig.models.language_model import EncoderDecoder
from jaxbig.objectives.seq2seq import Seq2Seq
from jaxbig.optim.adafactor import Adafactor
from jaxbig.optim.schedules import WarmupInverseRoot


def config() -> Experiment:
    data = Pairs(
        records=Tfds("cnn_dailymail", eval_split="validation"),
        tokenizer=BytePairs(vocab=32_128, specials=("<start>", "<end>")),
        source_feature="article",
        target_feature="highlights",
        batch=128,
        length=512,
        target_length=128,
    )
    written = Generation(scores=("rouge1", "rouge2", "rougeL"), most=2_000, max_tokens=128)
    return Experiment(
        model=EncoderDecoder(
            vocab=data.vocab,
            depth=6,
            width=512,
            heads=8,
            norm="rms",
            pre_norm=True,
            epsilon=1e-6,
            bias=False,
            positions="relative",
            attention_scale=1.0,
            scale_embedding=False,
            scale_logits=True,
            dropout=0.1,
            dtype="bfloat16",
        ),
        objective=Seq2Seq(vocab=data.vocab, start=data.start, end=data.end),
        data=data,
        optimizer=Adafactor(learning_rate=WarmupInverseRoot(peak=1e-2, warmup=10_000)),
        evaluators=(Every(10_000, written),),
        mesh=Mesh(data=-1),
        steps=100_000,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    )
