"""A small U-Net that finds the handwritten digit of each pixel on textured paper.

    jaxbig train digits_segmentation

Not measured yet. What it has to beat: `python benchmarks/baselines.py --only canvas`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.digit_canvas import DigitCanvas
from jaxbig.data.masks import Masks
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.unet import UNet
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Masks(records=DigitCanvas(), batch=16, size=32, classes=11, ignore=None)
    return Experiment(
        model=UNet(classes=data.classes, levels=3, width=16),
        objective=Classification(classes=data.classes, macro=True),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=3e-3, warmup=50), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=2_400,
        evaluate_every=600,
        checkpoint_every=600,
    )
