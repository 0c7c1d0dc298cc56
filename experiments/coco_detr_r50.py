"""DETR with a ResNet-50 on COCO's photographs of 80 kinds of objects (Lin et al., 2014).

    jaxbig train coco_detr_r50

Queries are at the points of a grid, images are squares of 512 pixels, and the backbone starts from
random parameters. Full size, not run here: `jaxbig data prepare` fetches its data first; `--smoke`
tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.boxes import Boxes
from jaxbig.data.records.tfds import Tfds
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.detr import DETR
from jaxbig.models.resnet import resnet
from jaxbig.objectives.average_precision import AveragePrecision
from jaxbig.objectives.detection import Detection
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Boxes(
        records=Tfds("coco/2017", eval_split="validation"),
        batch=64,
        size=512,
        classes=80,
        objects=100,
        group="objects",
        boxes_feature="bbox",
        labels_feature="label",
        crowd_feature="is_crowd",
        flip=True,
    )
    backbone = resnet(50, data.classes, dtype="bfloat16")
    return Experiment(
        model=DETR(
            classes=data.classes, backbone=backbone, mlp_width=2048, dropout=0.1, dtype="bfloat16"
        ),
        objective=Detection(classes=data.classes),
        metrics=(AveragePrecision(),),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=2e-4, warmup=1_000), weight_decay=1e-4, clip_norm=0.1
        ),
        mesh=Mesh(data=-1),
        steps=92_000,
        evaluate_every=4_600,
        checkpoint_every=4_600,
    )
