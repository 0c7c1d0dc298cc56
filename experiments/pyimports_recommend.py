"""Two towers that say which module a Python file imports besides those shown.

    jaxbig train pyimports_recommend

Not measured yet. What it has to beat: `python benchmarks/baselines.py --only imports`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.builtin.pyimports import PyImports
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.two_tower import TwoTower
from jaxbig.objectives.retrieval import Retrieval
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = PyImports(batch=256)
    return Experiment(
        model=TwoTower(vocab=data.vocab, items=data.classes, dropout=0.2),
        objective=Retrieval(items=data.classes),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=1e-2, warmup=50), weight_decay=0.2, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=3_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
