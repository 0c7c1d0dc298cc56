"""A small DETR that finds handwritten digits on textured paper: a class and a box each.

    jaxbig train digits_detection

Two cores of an Intel Xeon, 4 to 6 minutes. COCO's average precision (AP) on 500 held-out images
after 3,000 steps, seeds 0 to 2: 0.436, 0.454, 0.424; AP50 0.721, 0.747, 0.715. Templates of each
digit have 0.263 and 0.437 (benchmarks/baselines.py --only boxes).
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.boxes import Boxes
from jaxbig.data.builtin.digit_canvas import DigitCanvas
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.detr import DETR
from jaxbig.models.resnet import ResNet
from jaxbig.objectives.average_precision import AveragePrecision
from jaxbig.objectives.detection import Detection
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Boxes(records=DigitCanvas(), batch=16, size=32, classes=10, objects=3)
    backbone = ResNet(
        classes=data.classes,
        stages=(1, 1, 1),
        bottleneck=False,
        norm="group",
        groups=8,
        stem="small",
        width=16,
    )
    return Experiment(
        model=DETR(classes=data.classes, backbone=backbone, depth=2, width=64, heads=4, grid=5),
        objective=Detection(classes=data.classes, class_weight=5.0),
        metrics=(AveragePrecision(),),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=2e-3, warmup=100), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=3_000,
        evaluate_every=1_000,
        checkpoint_every=1_000,
    )
