"""ImageNet-1k as it is trained on by custom: a random crop and flip; the middle of each image in evaluation."""

from jaxbig.data.images import Images
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.transforms.augment import (
    Augmentation,
    CentralCrop,
    Flip,
    Mixing,
    Normalize,
    ResizedCrop,
)

COLOURS = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def imagenet(
    batch: int,
    size: int = 224,
    more: tuple[Augmentation, ...] = (),
    mix: tuple[Mixing, ...] = (),
    last: tuple = (),
) -> Images:
    """The data set `imagenet2012`: Inception's crop (Szegedy et al., 2015) and a flip, then `more`, then colours
    normalized, then `last`; in evaluation the middle 7/8 of the shorter side, as 224 of 256."""
    return Images(
        records=Tfds("imagenet2012", eval_split="validation"),
        batch=batch,
        size=size,
        classes=1000,
        canvas=384,
        augment=(ResizedCrop(), Flip(), *more, COLOURS, *last),
        center=(CentralCrop(), COLOURS),
        mix=mix,
    )
