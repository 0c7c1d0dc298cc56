"""The conv net of PyTorch's MNIST example, on MNIST.

    jaxbig data prepare mnist_convnet
    jaxbig train mnist_convnet

It has not been run here; it needs the data. 30 epochs with AdamW.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.images import Images
from jaxbig.data.records.tfds import Tfds
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.convnet import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Images(records=Tfds("mnist"), batch=128, size=28, channels=1, classes=10)
    convolutions = (Conv(32, padding="valid"), Conv(64, padding="valid"), Pool())
    return Experiment(
        model=ConvNet(
            layers=(*convolutions, Dropout(0.25), Dense(128), Dropout(0.5)), classes=data.classes
        ),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=AdamW(learning_rate=WarmupCosine(peak=1e-3, warmup=500), weight_decay=0.05),
        mesh=Mesh(data=-1),
        steps=14_100,
        evaluate_every=470,
        checkpoint_every=470,
    )
