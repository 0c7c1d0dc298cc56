"""Convolutions that read the sound of Morse code, with CTC.

    jaxbig train morse_ctc

Speed, pitch, noise and fading differ from one example to the next. `--objective.beam 0` decodes
greedily.

Two cores of an AMD EPYC, under 5 minutes. Character error rate on 500 held-out sounds after 2,000
steps, seeds 0 to 2: 0.226, 0.229, 0.222; word error rate 0.392, 0.397, 0.382; exact match 0.602,
0.594, 0.606. A threshold and run lengths have 0.345, 0.514 and 0.596 (benchmarks/baselines.py
--only morse).
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Transcripts
from jaxbig.data.builtin.morse import ALPHABET, LETTERS, RATE, SAMPLES, Morse
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.data.transforms.spec_augment import SpecAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.speech import Jasper
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
            sample_rate=RATE, window=80, hop=40, mels=16, lowest=200.0, highest=1_000.0, floor=0.05
        ),
        normalize="example",
        masks=SpecAugment(frequency_masks=1, frequency_width=2, time_masks=1, time_width=2),
    )
    model = Jasper(classes=data.classes, width=96, depth=3, kernel=9)
    return Experiment(
        model=model,
        objective=CTC(classes=data.classes, stride=4, beam=8, space=data.space),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=5e-3, warmup=100), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=2_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
