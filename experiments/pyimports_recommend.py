"""Two towers that say which module a Python file imports besides those shown.

    jaxbig train pyimports_recommend

Two cores of an Intel Xeon, 47 s. On 314 held-out files after 3,000 steps, seeds 0 to 2: NDCG at 10
0.458, 0.459, 0.452; hit rate at 10 0.656, 0.656, 0.656. What is imported together has 0.427 and
0.637, EASE 0.412 and 0.634, what is imported most 0.185 and 0.322 (benchmarks/baselines.py --only
imports). On so few files, rates that differ by less than 0.03 may be equal. The files are those of
Python 3.11.7 and of the packages of requirements.lock.
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
