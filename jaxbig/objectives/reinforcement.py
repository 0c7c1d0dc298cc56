"""The base class of reinforcement learning: actors that play an environment in the train step.

Environments are those of gymnax (Lange, 2022). Each row of a batch is an actor; what it remembers
from step to step is in the collection "carry", so it is sharded, saved and resumed as the rest.

Letters in shape comments: B batch (actors), T steps of the environment, K outputs of the model.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import serialization

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt, Probability, validate
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Found, Objective, Sums, Words, as_numbers, masked

CARRY = "carry"
"""The collection of variables with a row for each actor."""
TARGET = "target"
"""The collection of parameters that change more slowly."""


class Environment:
    """An environment of gymnax with numbered actions; its methods are of one actor.

    Attributes:
      actions: how many there are.
      limit: steps of an episode at most.
    """

    def __init__(self, name: str):
        try:
            import gymnax  # here: an extra, and slow to import
        except ImportError:
            raise Refused(f"environment {name} needs gymnax: pip install 'jaxbig[rl]'.") from None
        if name not in gymnax.registered_envs:
            known = ", ".join(gymnax.registered_envs)
            raise Refused(f"--objective.environment {name}: gymnax has {known}.")
        self.game, self.params = gymnax.make(name)
        if not hasattr(self.game.action_space(self.params), "n"):
            raise Refused(f"--objective.environment {name}: its actions must be numbered.")
        self.actions = int(self.game.num_actions)
        self.limit = int(self.params.max_steps_in_episode)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """The first observation and state of an episode."""
        return self.game.reset_env(key, self.params)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        """Next observation and state, reward, whether the episode is over by itself, and whether it
        is over, by itself or by its limit of steps."""
        observation, state, reward, terminated, _ = self.game.step_env(
            key, state, action, self.params
        )
        ended = terminated | self.game.is_truncated(state, self.params)
        return observation, state, upcast(reward), terminated, ended


@dataclasses.dataclass(frozen=True)
class Actors(Objective):
    """Base class: actors that play and remember.

    Reads `inputs` [B], the numbers of episodes, and `mask` [B]. The model gets observations [...,
    *] and not the inputs.
    """

    environment: str
    """Its name."""
    play: PositiveInt
    """Steps of the environment that each actor takes before it learns from them."""
    discount: Probability = 0.99
    """Factor of a reward one step later."""

    feeds_inputs = False

    @abc.abstractmethod
    def world(self) -> Environment:
        """The environment."""

    @abc.abstractmethod
    def outputs(self, actions: int) -> int:
        """How many numbers the model gives."""

    @abc.abstractmethod
    def choose(
        self, model: Any, variables: Any, actors: Any, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The actors' actions [B], and what happened besides, arrays [B, ...] by name.

        Args:
          model: the model, with its variables, as of `frozen`.
          variables: likewise.
          actors: as the carry has them.
          keys: of each actor, [B].
        """

    @abc.abstractmethod
    def episodes(self, forward: nn.Module, inputs: jax.Array) -> dict[str, jax.Array]:
        """An evaluation's episode of each number [B], arrays [B, ...] by name."""

    @abc.abstractmethod
    def numbers(self) -> tuple[str, ...]:
        """The names of the arrays [B] of `episodes` that an evaluation averages."""

    @abc.abstractmethod
    def memory(self, observation: jax.Array) -> dict[str, jax.Array]:
        """What actors keep of what they see [B, *], zeros [B, ...]."""

    @abc.abstractmethod
    def learn(self, forward: nn.Module, batch: Batch, key: jax.Array) -> Sums:
        """Plays, and gives the sums of a train step."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        validate(self)
        if forward.is_initializing():
            self._begin(forward, batch["mask"].shape[0])
            return {"loss": masked(jnp.zeros_like(batch["mask"]), batch["mask"])}
        if train:
            return self.learn(forward, batch, key)
        found = self.episodes(forward, batch["inputs"])
        return {name: masked(found[name], batch["mask"]) for name in self.numbers()}

    def _begin(self, forward: nn.Module, rows: int) -> None:
        """Makes the model's parameters, and actors that reset before they act."""
        environment = self.world()
        observation, state = jax.eval_shape(environment.reset, jax.random.key(0))
        zeros = jax.tree.map(
            lambda each: jnp.zeros((rows, *each.shape), each.dtype),
            {"observation": observation, "state": serialization.to_state_dict(state)},
        )
        outputs = forward(upcast(zeros["observation"]), train=False)  # type: ignore[operator]
        wanted = self.outputs(environment.actions)
        if outputs.shape[1:] != (wanted,):
            raise Refused(
                f"the model gives {list(outputs.shape[1:])} numbers for the {environment.actions} "
                f"actions of {self.environment}: {type(self).__name__} needs [{wanted}]."
            )
        scores = jnp.zeros((2, rows))
        actors = {
            **zeros,
            "count": jnp.zeros(rows, jnp.int32),
            "ended": jnp.ones(rows, bool),
            "score": scores[0],
            "last": scores[1],
        }
        for name, each in (("actors", actors), ("memory", self.memory(zeros["observation"]))):
            forward.put_variable(CARRY, name, jax.tree.map(by_actor, each))
        self.begin(forward)

    def begin(self, forward: nn.Module) -> None:
        """Makes other variables, from the first parameters; by default none."""

    def _play(
        self, model: Any, variables: Any, actors: Any, inputs: jax.Array, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The actors after their next steps, and what happened, arrays [B, T, ...] by name.

        Args:
          model: the model, with its variables, as of `frozen`.
          variables: they do not change meanwhile.
          actors: as the carry has them.
          inputs: a number of each actor [B], from which it draws with the key.
          key: of this train step.
        """
        environment = self.world()
        state_of = jax.eval_shape(environment.reset, jax.random.key(0))[1]

        def restarted(actor: Any, key: jax.Array) -> Any:
            observation, state = environment.reset(key)
            first = {
                **actor,
                "observation": observation,
                "state": serialization.to_state_dict(state),
                "score": jnp.zeros_like(actor["score"]),
            }
            return jax.tree.map(lambda new, old: jnp.where(actor["ended"], new, old), first, actor)

        def moved(actor: Any, action: jax.Array, besides: Any, key: jax.Array) -> tuple[Any, Any]:
            state = serialization.from_state_dict(state_of, actor["state"])
            after, state, reward, terminated, ended = environment.step(key, state, action)
            score = actor["score"] + reward
            happened = {
                **besides,
                "observation": actor["observation"],
                "action": action,
                "reward": reward,
                "next": after,
                "terminated": terminated,
                "ended": ended,
            }
            new = {
                "observation": after,
                "state": serialization.to_state_dict(state),
                "count": actor["count"],
                "ended": ended,
                "score": score,
                "last": jnp.where(ended, score, actor["last"]),
            }
            return as_before(new, actor), happened

        def step(actors: Any, time: jax.Array) -> tuple[Any, Any]:
            of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
            of_reset, of_move = jnp.moveaxis(jax.vmap(jax.random.split)(of_step), 1, 0)
            actors = as_before(jax.vmap(restarted)(actors, of_reset), actors)
            of_action, of_step = jnp.moveaxis(jax.vmap(jax.random.split)(of_move), 1, 0)
            actions, besides = self.choose(model, variables, actors, of_action)
            return jax.vmap(moved)(actors, actions, besides, of_step)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, inputs)  # [B]
        actors, happened = jax.lax.scan(step, actors, jnp.arange(self.play))
        return actors, jax.tree.map(lambda each: jnp.moveaxis(each, 0, 1), happened)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """What `episodes` gives."""
        return self.episodes(forward, batch["inputs"])


@dataclasses.dataclass(frozen=True)
class Reinforcement(Actors):
    """Base class: actors in an environment of gymnax, and in evaluation whole episodes of the best
    actions.

    Metrics are the `return`, the sum of an episode's rewards (in training that of each actor's last
    one, 0 before it has ended one), and in evaluation `loss`, half the squared error of a temporal
    difference.
    """

    environment: str
    """Name in gymnax, as CartPole-v1."""

    criterion = "return"
    higher_is_better = True

    @abc.abstractmethod
    def act(self, outputs: jax.Array, key: jax.Array, count: jax.Array) -> jax.Array:
        """An actor's action after `count` steps of training, from outputs [K]."""

    @abc.abstractmethod
    def best(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """By outputs [..., K] the best action, its value, and that of what is seen; [...]."""

    def world(self) -> Environment:
        return Environment(self.environment)

    def numbers(self) -> tuple[str, ...]:
        return "loss", "return"

    def choose(
        self, model: Any, variables: Any, actors: Any, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = model.apply(variables, actors["observation"], train=False)
        return jax.vmap(self.act)(outputs, keys, actors["count"]), {"outputs": outputs}

    def episodes(self, forward: nn.Module, inputs: jax.Array) -> dict[str, jax.Array]:
        """An episode of best actions from each number [B].

        Returns:
          `actions` and `observations` [B, T, ...], of which the first `length` [B] count; `return`
          and `loss` [B].
        """
        environment = self.world()
        model, variables = frozen(forward)
        keys = jax.vmap(jax.random.key)(inputs)
        observation, state = jax.vmap(environment.reset)(keys)

        def step(now: Any, time: jax.Array) -> tuple[Any, Any]:
            observation, state, ended = now
            outputs = model.apply(variables, observation, train=False)
            action, value, best = self.best(outputs)
            of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
            after = jax.vmap(environment.step)(of_step, state, action)
            new = as_before((*after[:2], ended | after[4]), now)
            return new, (observation, action, value, best, after[2], after[3], ~ended)

        ended = jnp.zeros(len(inputs), bool)
        first = jax.tree.map(jnp.asarray, (observation, state, ended))
        _, found = jax.lax.scan(step, first, jnp.arange(environment.limit))
        seen, actions, values, best, rewards, terminated, real = (
            jnp.moveaxis(each, 0, 1) for each in found
        )
        after = jnp.pad(best[:, 1:], ((0, 0), (0, 1)))
        known = real & (terminated | jnp.pad(real[:, 1:], ((0, 0), (0, 1))))
        wanted = rewards + self.discount * jnp.where(terminated, 0, after)
        errors = jnp.where(known, wanted - values, 0)
        return {
            "observations": seen,
            "actions": actions,
            "length": jnp.sum(real, axis=1),
            "return": jnp.sum(jnp.where(real, rewards, 0), axis=1),
            "loss": jnp.sum(errors**2, axis=1) / 2 / jnp.maximum(jnp.sum(known, axis=1), 1),
        }

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`return`, `loss`, and the `actions` of the episode."""
        row = {name: as_numbers(found[name]) for name in ("return", "loss")}
        return {**row, "actions": as_numbers(found["actions"][: int(found["length"])])}


def frozen(forward: nn.Module) -> tuple[Any, Any]:
    """The bound model as a pure function's parts: the model, and its variables without actors."""
    model, variables = forward.unbind()
    known = {name: each for name, each in variables.items() if name not in (CARRY, TARGET)}
    return model, jax.lax.stop_gradient(known)


def by_actor(x: jax.Array) -> nn.LogicallyPartitioned:
    """An array [B, ...] with the names of its axes."""
    return nn.LogicallyPartitioned(x, ("batch", *(None,) * (x.ndim - 1)))


def as_before(new: Any, old: Any) -> Any:
    """A tree with the dtypes of another; the types of a game may be weak."""
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), new, old)


def over_time(function: Callable[[jax.Array], jax.Array], seen: jax.Array) -> jax.Array:
    """A function of rows, on observations [B, T, *]; [B, T, K]."""
    outputs = function(seen.reshape(-1, *seen.shape[2:]))
    return outputs.reshape(*seen.shape[:2], -1)
