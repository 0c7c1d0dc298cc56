"""A recurrent encoder-decoder with additive attention, from dates as people write them to ISO 8601.

    jaxbig train dates_seq2seq      # draws where it looks into runs/dates_seq2seq/attention.png

Two cores of an AMD EPYC. Exact match on 1,000 held-out dates after 1,000 steps, seeds 0 to 2:
1.000, 1.000, 1.000; what has to be beaten is 0.990: there are no simple rules to compare with
(benchmarks/baselines.py).
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.dates import Dates
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.rnn_seq2seq import RNNEncoderDecoder
from jaxbig.objectives.seq2seq import Seq2Seq
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Dates(batch=64)
    return Experiment(
        model=RNNEncoderDecoder(vocab=data.vocab, target_vocab=data.vocab, width=96),
        objective=Seq2Seq(vocab=data.vocab, start=data.start, end=data.end),
        data=data,
        optimizer=AdamW(learning_rate=WarmupCosine(peak=4e-3, warmup=100), b2=0.98, clip_norm=1.0),
        mesh=Mesh(data=-1),
        steps=1_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
