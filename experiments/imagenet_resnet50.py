"""ResNet-50 on ImageNet, in 90 epochs.

    jaxbig data prepare imagenet_resnet50
    jaxbig train imagenet_resnet50

It has not been run here at full size; it needs the data. Rate 0.1 for each 256 rows, five epochs of
warm-up and weight decay as Goyal et al. (2017), half a cosine and label smoothing as He et al.
(2019).
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.imagenet import imagenet
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.resnet import resnet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = imagenet(batch=1024)
    return Experiment(
        model=resnet(50, classes=data.classes, dtype="bfloat16"),
        objective=Classification(classes=data.classes, smoothing=0.1),
        data=data,
        optimizer=SGD(
            learning_rate=WarmupCosine(peak=0.4, warmup=6_255), momentum=0.9, nesterov=True, l2=1e-4
        ),
        mesh=Mesh(data=-1),
        steps=112_590,
        evaluate_every=1_251,
        checkpoint_every=1_251,
    )
