"""Tic-tac-toe by self-play and search: it never loses.

    jaxbig train tictactoe_alphazero

Two cores of an Intel Xeon: 2.3 minutes. Share lost of 1,890 games, which have every line that an
opponent can play against it as first and as second player, some of them twice or three times, after
3,000 steps, seeds 0 to 2: 0.000, 0.000, 0.000; 0.953, 0.949, 0.950 are won. Against minimax of two
moves it loses 0.000 each. Random play loses 0.420 of these games, minimax 0.041, and the same
search with first parameters 0.067 (benchmarks/baselines.py --only tictactoe). The share of random
moves was chosen with other seeds. With 16 simulations, 16 samples, half the width and 4,000 steps,
the first choice, seed 0 lost none and seed 1 lost 0.003; so these were doubled for all, and other
seeds may still lose some. Needs `pip install 'jaxbig[rl]'`.
"""

from jaxbig.config.experiment import Experiment
from jaxbig.data.episodes import Episodes
from jaxbig.distributed.mesh import Mesh
from jaxbig.models.mlp import MLP
from jaxbig.objectives.alphazero import AlphaZero
from jaxbig.optim.optimizers import Adam
from jaxbig.optim.schedules import WarmupCosine


def config() -> Experiment:
    return Experiment(
        model=MLP(widths=(256, 256), outputs=10),
        objective=AlphaZero(
            environment="tic_tac_toe",
            simulations=32,
            samples=32,
            explore=0.5,
            opponents=("random", "minimax", "every_line"),
        ),
        data=Episodes(batch=32, eval_examples=1_890, test_examples=0),
        optimizer=Adam(learning_rate=WarmupCosine(peak=2e-3, warmup=100), clip_norm=1.0),
        mesh=Mesh(data=-1),
        ema=0.99,
        steps=3_000,
        evaluate_every=1_500,
        checkpoint_every=1_500,
    )
