"""`imdb_lstm` with one layer and attention pooling (Yang et al., 2016, section 2.2).

    jaxbig train imdb_attention_rnn

Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke` tries it without.
"""

import dataclasses

from jaxbig.config.experiment import Experiment
from jaxbig.experiments import imdb_lstm


def config() -> Experiment:
    parent = imdb_lstm.config()
    return dataclasses.replace(parent, model=parent.model.clone(layers=1, pooling="attention"))
