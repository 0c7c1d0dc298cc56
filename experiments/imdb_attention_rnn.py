"""An attention-pooled bidirectional LSTM on IMDB's film reviews (Yang et al., 2016, section 2.2).

    jaxbig train imdb_attention_rnn

Full size, not run here: its tokenizer is not there yet, so `train` refuses it; `show` tells what it is.
"""

from jaxbig.data.tfds import Sentences
from jaxbig.experiment import Experiment
from jaxbig.mesh import Mesh
from jaxbig.models.recurrent import RNN
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Sentences(
        name="imdb_reviews", feature="text", batch=64, length=512, vocab=20_000, classes=2, eval_split="test"
    )
    return Experiment(
        model=RNN(
            vocab=data.vocab,
            embedding=128,
            width=256,
            bidirectional=True,
            pooling="attention",
            dropout=0.5,
            classes=data.classes,
        ),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=AdamW(rate=WarmupCosine(peak=1e-3, warmup=200), weight_decay=0.01, clip=1.0),
        mesh=Mesh(data=-1),
        steps=4_000,
        evaluate_every=400,
        checkpoint_every=400,
    )
