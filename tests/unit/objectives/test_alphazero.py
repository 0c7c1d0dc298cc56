"""Games, opponents and search: rules and values by hand and by plain loops, all lines of play."""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.experiments import small

from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP
from jaxbig.objectives.alphazero import AlphaZero
from jaxbig.objectives.games import SIDE, Game, minimax, opposed, outcomes, picture_of
from jaxbig.program.program import make_program

pytest.importorskip("pgx")
pytest.importorskip("mctx")
DRAW = np.random.default_rng(0)
LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


@cache
def game() -> Game:
    return Game("tic_tac_toe", 9)


@cache
def stepped() -> Any:
    return jax.jit(lambda state, action: game().step(jax.random.key(0), state, action))


def after(actions: Any) -> Any:
    """The state after these actions of both."""
    state = game().reset(jax.random.key(0))[1]
    for action in actions:
        state = stepped()(state, jnp.int32(action))[1]
    return state


def plain_values(actions: list[int], depth: int) -> list[float]:
    """Minimax over lists of actions, with rules of its own."""
    values = []
    for action in range(9):
        if action in actions:
            values.append(-np.inf)
            continue
        new = [*actions, action]
        mine = set(new[::-1][::2])
        if any(mine.issuperset(line) for line in LINES):
            values.append(1.0)
        elif len(new) == 9 or depth == 1:
            values.append(0.0)
        else:
            values.append(-max(plain_values(new, depth - 1)))
    return values


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(9)), st.integers(0, 7))
def test_minimax_is_that_of_plain_rules(order: list[int], count: int) -> None:
    actions = order[:count]
    for end in range(count + 1):
        mine = set(actions[:end][::-1][::2])
        if any(mine.issuperset(line) for line in LINES):  # the game is over
            return
    found = minimaxed()(after(actions))
    for depth, values in zip((1, 2), found, strict=True):
        assert values.tolist() == plain_values(actions, depth)


@cache
def minimaxed() -> Any:
    return jax.jit(lambda state: [minimax(game(), state, depth) for depth in (1, 2)])


def test_the_player_who_moves_gets_the_reward() -> None:
    assert [float(stepped()(after([0, 3, 1, 4]), jnp.int32(a))[2]) for a in (2, 8)] == [1, 0]
    _, _, reward, terminated, ended = stepped()(after([8, 0, 3, 1, 4]), jnp.int32(2))
    assert (float(reward), bool(terminated), bool(ended)) == (1, True, True)
    short = Game("tic_tac_toe", 5)  # a draw by the limit of moves
    _, _, reward, terminated, ended = short.step(jax.random.key(0), after([0, 1, 2, 3]), 4)
    assert (float(reward), bool(terminated), bool(ended)) == (0, False, True)


def test_outcomes_change_their_sign_with_each_move() -> None:
    moves = {
        "reward": jnp.array([0.0, 0, 1, 0, 0, 0, 1, 0]),
        "ended": jnp.array([0, 0, 1, 0, 0, 0, 1, 0], bool),
        "random": jnp.array([0, 0, 0, 0, 1, 0, 0, 0], bool),
        "searched": jnp.array([9.0, 9, 9, 9, 0.75, 9, 9, 9]),
    }
    values, known = outcomes(moves, 0.5)
    assert values.tolist() == [0.25, -0.5, 1, -0.375, 0.75, -0.5, 1, 0]
    assert known.tolist() == [True] * 7 + [False]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**20))
def test_a_memory_knows_the_moves_of_games_that_ended(plays: int, seed: int) -> None:
    """Against a plain list of all moves, of which the last 6 are kept."""
    draw = np.random.default_rng(seed)
    steps = 2 * plays
    ended = draw.random(steps) < 0.4
    happened = {
        "reward": np.where(ended, draw.integers(-1, 2, steps), 0).astype(np.float32),
        "ended": ended,
        "random": draw.random(steps) < 0.2,
        "searched": draw.integers(-4, 5, steps).astype(np.float32) / 4,
        "number": np.arange(steps),
    }
    memory = {name: jnp.zeros(6, each.dtype) for name, each in happened.items()}
    memory |= {"value": jnp.zeros(6), "known": jnp.zeros(6, bool)}
    for play in range(plays):
        new = {name: jnp.asarray(each[2 * play : 2 * play + 2]) for name, each in happened.items()}
        memory = remembering()(memory, new, jnp.int32(play))
    kept = []
    for place in range(min(6, steps)):
        begin = int(memory["number"][place])
        ends = np.flatnonzero((ended | happened["random"])[begin:])
        assert bool(memory["known"][place]) == bool(len(ends))
        if len(ends):
            end = begin + ends[0]
            name = "searched" if happened["random"][end] else "reward"
            assert float(memory["value"][place]) == happened[name][end] * (-0.5) ** ends[0]
        kept.append(begin)
    assert sorted(kept) == list(range(steps))[-6:]
    assert not memory["known"][steps:].any()


@cache
def remembering() -> Any:
    return jax.jit(
        AlphaZero(environment="tic_tac_toe", play=2, capacity=6, discount=0.5).remembered
    )


def test_only_known_positions_are_drawn_and_each_as_often() -> None:
    objective = AlphaZero(environment="tic_tac_toe", play=1, capacity=4, samples=20_000)
    memory = {"known": jnp.array([True, False, True, True]), "place": jnp.arange(4)}
    shares = np.bincount(objective.sample(memory, jax.random.key(0))["place"], minlength=4) / 20_000
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.02)


def test_opponents_play_what_they_are_called_for() -> None:
    def answers(kind: Any, actions: list[int], digits: int = 0) -> list[int]:
        line = jnp.int32(digits)
        state = after(actions)
        moves = jax.jit(jax.vmap(lambda key: opposed(kind, game(), state, 2, line, key)[0]))
        return sorted(set(moves(jax.random.split(jax.random.key(0), 100)).tolist()))

    assert answers("random", [0, 3, 1]) == [2, 4, 5, 6, 7, 8]
    assert answers("minimax", [0, 3, 1]) == [2]  # blocks
    assert answers("minimax", [0, 3, 1, 4]) == [2]  # wins
    assert answers("every_line", [0, 3, 1], 6 * 5 + 4) == [7]  # the fifth that is free
    left = opposed("every_line", game(), after([0, 3, 1]), 2, jnp.int32(34), jax.random.key(0))[1]
    assert int(left) == 5


def untrained() -> tuple[MLP, Any]:
    """A small model and its first parameters."""
    model = MLP(widths=(8,), outputs=10)
    return model, nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 3, 3, 2))))


@cache
def searched(simulations: int, noise: float = 0.0) -> Any:
    """The search with these."""
    model, variables = untrained()
    objective = AlphaZero(environment="tic_tac_toe", simulations=simulations)
    return jax.jit(lambda state, key: objective.search(model, variables, state, key, noise))


def test_an_untrained_search_wins_in_one_and_blocks() -> None:
    search = searched(100)
    for actions, best in (([0, 3, 1, 4], 2), ([8, 0, 3, 1, 4], 2), ([0, 4, 1], 2), ([4, 0, 2], 6)):
        found = search(after(actions), jax.random.key(0))
        assert int(found["action"]) == int(jnp.argmax(found["policy"])) == best, actions


def test_a_policy_has_no_illegal_actions() -> None:
    for seed in range(5):
        found = searched(16, 1.0)(after([4, 0, 8, 2]), jax.random.key(seed))
        policy = np.asarray(found["policy"])
        assert policy[[4, 0, 8, 2]].sum() == 0
        assert policy.sum() == pytest.approx(1, abs=1e-5)
        assert int(found["action"]) not in (4, 0, 8, 2)


def test_every_line_of_play_is_evaluated() -> None:
    """Against a plain enumeration of the opponent's actions."""
    model, variables = untrained()
    objective = AlphaZero(environment="tic_tac_toe", opponents=("every_line",), simulations=4)
    search = searched(4)

    known: dict[Any, Any] = {}  # by position, which several orders lead to

    def lines(state: Any, actions: tuple[int, ...], first: bool) -> Iterator[tuple[int, ...]]:
        if state.terminated:
            yield actions
            return
        mine = (len(actions) % 2 == 0) == first
        legal = [action for action in range(9) if action not in actions]
        for action in [int(search(state, jax.random.key(0))["action"])] if mine else legal:
            new = (*actions, action)
            position = frozenset(new[::2]), frozenset(new[1::2])
            if position not in known:
                known[position] = stepped()(state, jnp.int32(action))[1]
            yield from lines(known[position], new, first)

    expected = [{*lines(after([]), (), first)} for first in (True, False)]
    play = nn.apply(lambda forward: objective.episodes(forward, jnp.arange(2 * 945)), model)
    found = jax.tree.map(np.asarray, jax.jit(play)(variables))
    rows = zip(found["actions"][:, 0].tolist(), found["length"][:, 0], strict=True)
    games = [tuple(actions[:length]) for actions, length in rows]
    assert [{*games[::2]}, {*games[1::2]}] == expected
    for number, actions in enumerate(games[:200]):
        mover = set(actions[::-1][::2])
        won = any(mover.issuperset(line) for line in LINES)
        mine = (len(actions) - 1) % 2 == number % 2
        result = 0 if not won else 1 if mine else -1
        assert found["result"][number, 0] == result
        names = {1: "wins_against", 0: "draws_with", -1: "losses_to"}
        assert [found[f"{name}_every_line"][number] for name in names.values()] == [
            each == result for each in names
        ]


def test_a_picture_has_the_stones_of_both() -> None:
    board = np.asarray(after([0, 4, 8]).observation)
    picture = picture_of(board, first=False)
    assert picture.shape == (3 * SIDE, 3 * SIDE, 3)
    middles = picture[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].sum(axis=-1)
    assert np.argwhere(middles == 0).tolist() == [[0, 0], [2, 2]]
    assert np.argwhere(middles == 3 * 255).tolist() == [[1, 1]]


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = small("tictactoe_alphazero")
    for changes, words in (
        ({"model.outputs": 9}, r"\[9\] numbers for the 9 actions of tic_tac_toe: .* needs \[10\]"),
        (
            {"objective.environment": "backgammon"},
            "environment backgammon: it must be one of pgx's ",
        ),
        ({"objective.play": 7}, "objective.capacity .* must be a multiple of play, 7"),
        ({"objective.opponents": ("random",)}, r"opponents.*: minimax must be one of them"),
    ):
        with pytest.raises(Refused, match=words):
            make_program(fitting.replace(**changes))
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(Refused, match=r"needs pgx and mctx .*: pip install 'jaxbig\[rl\]'"):
        make_program(fitting)
