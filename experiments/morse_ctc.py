"""Convolutions and a bidirectional LSTM that read the sound of Morse code, with CTC.

    jaxbig train morse_ctc

Speed, pitch, noise and fading differ from one example to the next. `--objective.beam 0` decodes
greedily.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Transcripts
from jaxbig.data.builtin.morse import ALPHABET, LETTERS, RATE, SAMPLES, Morse
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.data.transforms.spec_augment import SpecAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.speech import DeepSpeech2
from jaxbig.objectives.ctc import CTC
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Transcripts(
        records=Morse(),
        batch=32,
        samples=SAMPLES,
        letters=LETTERS,
        alphabet=ALPHABET,
        spectrogram=LogMel(
            sample_rate=RATE, window=64, hop=25, mels=16, lowest=200.0, highest=1_000.0
        ),
        masks=SpecAugment(frequency_masks=1, frequency_width=3, time_masks=1, time_width=4),
    )
    model = DeepSpeech2(classes=data.classes, width=96, layers=1, channels=16)
    return Experiment(
        model=model,
        objective=CTC(classes=data.classes, stride=4, beam=8, space=data.space),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=3e-3, warmup=100), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=1_000,
        evaluate_every=250,
        checkpoint_every=250,
    )
