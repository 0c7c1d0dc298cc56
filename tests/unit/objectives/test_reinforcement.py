"""Actors, Q-learning and PPO: targets, replays and chances by hand, returns by a plain loop."""

import dataclasses
import sys
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.experiments import small

import jaxbig as jb
from jaxbig.errors import Refused
from jaxbig.objectives.ppo import PPO, advantages, clipped
from jaxbig.objectives.q_learning import QLearning, q_targets, written
from jaxbig.program.program import make_program

gymnax = pytest.importorskip("gymnax")
DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("double", [True, False])
def test_targets_of_q_learning_are_those_of_a_plain_loop(double: bool) -> None:
    rewards = DRAW.normal(size=20)
    terminated = DRAW.random(20) < 0.3
    slow = DRAW.normal(size=(20, 3))
    fast = DRAW.normal(size=(20, 3))
    expected = []
    for reward, end, after, choice in zip(rewards, terminated, slow, fast, strict=True):
        best = after[np.argmax(choice)] if double else max(after)
        expected.append(reward + (0 if end else 0.9 * best))
    found = q_targets(*map(jnp.asarray, (rewards, terminated, slow, fast if double else slow)), 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_advantages_are_sums_of_what_follows() -> None:
    """Equation 16 of Schulman et al. (2016) by its sum; the limit of steps cuts, and bootstraps."""
    rewards, values, after = DRAW.normal(size=(3, 30))
    terminated = DRAW.random(30) < 0.2
    ended = terminated | (DRAW.random(30) < 0.2)
    expected = []
    for begin in range(30):
        total = 0.0
        for time in range(begin, 30):
            following = 0 if terminated[time] else 0.9 * after[time]
            error = rewards[time] + following - values[time]
            total += (0.9 * 0.8) ** (time - begin) * error
            if ended[time]:
                break
        expected.append(total)
    given_ = map(jnp.asarray, (rewards, values, after, terminated, ended))
    np.testing.assert_allclose(
        advantages(*given_, discount=0.9, trace=0.8), expected, rtol=1e-5, atol=1e-6
    )


def test_a_ratio_pays_no_more_beyond_the_clip() -> None:
    ratio = jnp.array([1.5, 0.5, 1.5, 0.5])
    found = clipped(ratio, jnp.array([1.0, 1.0, -1.0, -1.0]), 0.2)
    np.testing.assert_allclose(found, [1.2, 0.5, -1.5, -0.8], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), st.integers(1, 7))
def test_a_replay_keeps_the_last_steps(priorities: list[float], writes: int) -> None:
    replay = {name: jnp.zeros(4) for name in ("reward", "priority")}
    kept: deque[float] = deque(maxlen=4)
    for write in range(writes):
        new = jnp.array([2.0 * write + 1, 2.0 * write + 2])
        replay["priority"] = jnp.where(replay["reward"] > 0, jnp.array(priorities), 0)
        largest = max(1.0, float(jnp.max(replay["priority"])))
        replay = written(replay, {"reward": new, "other": new}, jnp.int32(2 * write))
        kept.extend(new.tolist())
        at = 2 * write % 4
        assert replay["priority"][at : at + 2].tolist() == [largest] * 2
    assert sorted(x for x in replay["reward"].tolist() if x) == list(kept)


def test_steps_are_drawn_by_their_priority() -> None:
    objective = QLearning(environment="CartPole-v1", capacity=4, samples=20_000, priority=0.5)
    priorities = jnp.array([1.0, 4.0, 9.0, 100.0])
    places, weights = objective.draw(priorities, jnp.int32(3), jax.random.key(0))
    shares = np.bincount(places, minlength=4) / len(places)
    np.testing.assert_allclose(shares, [1 / 6, 2 / 6, 3 / 6, 0], atol=0.02)
    expected = (3 * np.array([1, 2, 3]) / 6) ** -0.4
    np.testing.assert_allclose(weights, (expected / expected.max())[places], rtol=1e-5)
    uniform = dataclasses.replace(objective, priority=0.0)
    places, weights = uniform.draw(priorities, jnp.int32(3), jax.random.key(0))
    np.testing.assert_allclose(np.bincount(places) / len(places), [1 / 3] * 3, atol=0.02)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_rewards_are_added_up_to_the_end_of_an_episode_and_the_newest_step() -> None:
    objective = QLearning(environment="CartPole-v1", capacity=6, rewards=3, discount=0.5)
    replay = {
        "reward": jnp.array([1.0, 2, 4, 8, 16, 32]),
        "next": 10 * jnp.arange(6.0),
        "ended": jnp.array([0, 0, 0, 1, 0, 0], bool),
    }
    replay |= {
        "terminated": replay["ended"],
        "observation": jnp.arange(6),
        "action": replay["next"],
    }
    newest = jnp.int32(1)  # 2 is the oldest
    for place, reward, after, discount in (
        (2, 4 + 8 / 2, 30, 1 / 4),
        (3, 8, 30, 1 / 2),
        (4, 16 + 32 / 2 + 1 / 4, 0, 1 / 8),
        (5, 32 + 1 / 2 + 2 / 4, 10, 1 / 8),
        (0, 1 + 2 / 2, 10, 1 / 4),
        (1, 2, 10, 1 / 2),
    ):
        found = objective.drawn(replay, jnp.int32(place), newest)
        assert (found["reward"], found["next"], found["discount"]) == (reward, after, discount)
        assert (found["terminated"], found["observation"]) == (after == 30, place)


def test_dueling_values_have_the_mean_of_the_first_number() -> None:
    objective = QLearning(environment="CartPole-v1", dueling=True)
    np.testing.assert_allclose(objective.values(jnp.array([5.0, 1.0, 3.0])), [4, 6])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    """Some steps of a small copy."""
    experiment = small("cartpole_dqn", steps=4, evaluate_every=4, checkpoint_every=4)
    return jb.fit(experiment, tmp_path_factory.mktemp("run"))


def test_returns_are_those_of_a_plain_loop(run: jb.Run) -> None:
    rows = list(jb.predict(run, [{"inputs": np.int32(number)} for number in (0, 7)]))
    environment, params = gymnax.make("CartPole-v1")
    model = run.experiment.model
    for number, row in zip((0, 7), rows, strict=True):
        seen, state = environment.reset(jax.random.key(number), params)
        actions = []
        total = 0.0
        over = False
        while not over:
            values = model.apply({"params": run.variables["params"]}, seen[None])
            actions.append(int(np.argmax(values)))
            seen, state, reward, *over_by, _ = environment.step_env(
                jax.random.key(0), state, actions[-1], params
            )
            total += float(reward)
            over = bool(over_by[0]) or len(actions) == 500
        assert (row["return"], row["actions"]) == (total, actions)


def test_what_calls_the_model_on_inputs_is_refused(run: jb.Run) -> None:
    with pytest.raises(Refused, match=r"QLearning does not call the model on the data's inputs"):
        jb.apply(run, {"inputs": np.arange(3, dtype=np.int32)})


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = small("cartpole_dqn")
    for changes, words in (
        ({"model.outputs": 3}, r"\[3\] numbers for the 2 actions of CartPole-v1: .* needs \[2\]"),
        ({"objective.environment": "Chess"}, "environment Chess: gymnax has CartPole-v1, "),
        ({"objective.environment": "Pendulum-v1"}, "Pendulum-v1: its actions must be numbered"),
        ({"objective.play": 3}, "objective.capacity .* must be a multiple of play, 3"),
    ):
        with pytest.raises(Refused, match=words):
            make_program(fitting.replace(**changes))
    with pytest.raises(Refused, match=r"objective\.play 5: it must be a multiple of parts, 2"):
        make_program(fitting.replace(objective=PPO(environment="CartPole-v1", play=5, parts=2)))
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(Refused, match=r"CartPole-v1 needs gymnax: pip install 'jaxbig\[rl\]'"):
        make_program(fitting)
