"""ResNet-18 with a small stem on CIFAR-10, in 200 epochs.

    jaxbig data prepare cifar10_resnet18
    jaxbig train cifar10_resnet18

It has not been run here at full size; it needs the data. SGD with momentum as He et al. (2016) have
it for CIFAR-10, with half a cosine and a weight decay of 5e-4 (DeVries and Taylor, 2017), their
random crops and flips.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.images import Images
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.transforms.augment import Flip, Normalize, RandomCrop
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.resnet import resnet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import WarmupCosine

COLORS = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def config() -> Experiment:
    data = Images(
        records=Tfds("cifar10"),
        batch=128,
        size=32,
        classes=10,
        augment=(RandomCrop(padding=4), Flip(), COLORS),
        center=(COLORS,),
    )
    return Experiment(
        model=resnet(18, classes=data.classes, stem="small"),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=SGD(
            learning_rate=WarmupCosine(peak=0.1, warmup=390), momentum=0.9, nesterov=True, l2=5e-4
        ),
        mesh=Mesh(data=-1),
        steps=78_000,
        evaluate_every=1_950,
        checkpoint_every=1_950,
    )
