"""A conv net on the log-mel spectrograms of Speech Commands (Warden, 2018), twelve classes.

    jaxbig train speech_commands_conv

Full size, not run here. TFDS needs TensorFlow to prepare this one: `tfds build speech_commands
--file_format=array_record`, on a machine that has it; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Sounds
from jaxbig.data.records.tfds import Tfds
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.convnet import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Sounds(records=Tfds("speech_commands"), batch=256, classes=12)
    layers = (
        Conv(32),
        Pool(),
        Conv(64),
        Pool(),
        Conv(128),
        Pool(),
        Dropout(0.25),
        Dense(256),
        Dropout(0.5),
    )
    return Experiment(
        model=ConvNet(layers=layers, classes=data.classes),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=AdamW(learning_rate=WarmupCosine(peak=1e-3, warmup=500), weight_decay=0.05),
        mesh=Mesh(data=-1),
        steps=20_000,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
