"""DLRM on a week of clicks on advertisements (Criteo's Display Advertising Challenge, 2014).

    jaxbig train criteo_dlrm --data.records.files train.txt

A line has the click, 13 numbers and 26 categories, between tabs; Criteo's AI Lab has the file. Each
process holds it in memory, 11 GB. Sizes are those of Naumov et al. (2019) for these data; values
are hashed to rows, so that some share one, and one line in twenty is held out at random. Full size,
not run here: `--smoke` tries it without its data.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.csv import Csv
from jaxbig.data.tabular import Categories
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.dlrm import DLRM
from jaxbig.objectives.class_scores import AUC
from jaxbig.objectives.classification import Classification
from jaxbig.optim.optimizers import SGD
from jaxbig.optim.schedules import Constant

NUMBERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
# different values of each category in the file
ROWS = (
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194,
    27, 14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip


def config() -> Experiment:
    data = Categories(
        records=Csv(
            files="criteo/train.txt",
            header=False,
            separator="\\t",
            columns=("click", *NUMBERS, *CATEGORIES),
            texts=CATEGORIES,
        ),
        batch=2_048,
        categories=tuple(zip(CATEGORIES, ROWS, strict=True)),
        numbers=NUMBERS,
        logarithm=True,
        targets="click",
        classes=2,
    )
    rows = -(-data.vocab // 128) * 128  # so that the table can be split over a mesh
    return Experiment(
        model=DLRM(classes=data.classes, vocab=rows),
        objective=Classification(classes=data.classes),
        data=data,
        optimizer=SGD(learning_rate=Constant(0.1), momentum=0.0),
        mesh=Mesh(data=-1),
        metrics=(AUC(),),
        steps=20_000,
        evaluate_every=2_000,
        checkpoint_every=10_000,
    )
