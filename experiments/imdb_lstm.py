"""A two-layer bidirectional LSTM on IMDB's film reviews.

    jaxbig train imdb_lstm

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.text import Sentences
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.rnn import RNN
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Sentences(
        records=Tfds("imdb_reviews"),
        tokenizer=BytePairs(vocab=20_000),
        batch=64,
        length=512,
        classes=2,
    )
    return Experiment(
        model=RNN(
            vocab=data.vocab,
            embedding=128,
            width=256,
            layers=2,
            bidirectional=True,
            pooling="last",
            dropout=0.5,
            classes=data.classes,
        ),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1e-3, warmup=200), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=4_000,
        evaluate_every=400,
        checkpoint_every=400,
    )
