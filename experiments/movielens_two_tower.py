"""Two towers on a million ratings of movies: which movie somebody rates (Harper and Konstan, 2015).

    jaxbig train movielens_two_tower

Each rating is an example, whatever its stars. Somebody's number, gender, age and occupation are the
query, and all movies are ranked, those that they rated before too. Full size, not run here: `jaxbig
data prepare` fetches its data first; `--smoke` tries it without.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.tabular import Categories
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.two_tower import TwoTower
from jaxbig.objectives.retrieval import Retrieval
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    data = Categories(
        records=Tfds("movielens/1m-ratings", train_split="train[:95%]", eval_split="train[95%:]"),
        batch=4_096,
        categories=(
            ("user_id", 6_063),
            ("user_gender", 2),
            ("bucketized_user_age", 57),
            ("user_occupation_label", 22),
        ),
        targets="movie_id",
        classes=3_968,  # their numbers end at 3,952
    )
    return Experiment(
        model=TwoTower(vocab=data.vocab, items=data.classes, width=128, dropout=0.1),
        objective=Retrieval(items=data.classes, exclude_shown=False),
        data=data,
        optimizer=AdamW(
            learning_rate=WarmupCosine(peak=2e-3, warmup=200), weight_decay=0.01, clip_norm=1.0
        ),
        mesh=Mesh(data=-1),
        steps=5_000,
        evaluate_every=500,
        checkpoint_every=500,
    )
