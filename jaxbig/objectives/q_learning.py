"""The Q-learning objective: the value of each action, from a replay of what actors did.

Letters in shape comments: B actors, C capacity of a replay, S samples of it, A actions.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Sums, masked
from jaxbig.objectives.reinforcement import (
    CARRY,
    TARGET,
    Reinforcement,
    as_before,
    frozen,
    over_time,
)

LEAST = 1e-6
"""What is added to each error, so that every step may be drawn."""


@dataclasses.dataclass(frozen=True)
class QLearning(Reinforcement):
    """Deep Q-learning (Mnih et al., 2015): the Huber loss of temporal differences over samples of
    a replay.

    Each actor has a replay of its own. The model gives a value for each action. The target network
    is a copy of the parameters. It is averaged over the parts of a batch under `reproducible`,
    where all copies are equal up to rounding.
    """

    play: PositiveInt = 1
    """Steps of the environment that each actor takes before it learns from them."""
    capacity: PositiveInt = 1_000
    """Steps that each actor's replay keeps; a multiple of `play`."""
    samples: PositiveInt = 8
    """Steps drawn from each replay in a train step."""
    rewards: PositiveInt = 1
    """Rewards that a target adds up before the value of what follows (Hessel et al., 2018)."""
    copy_every: PositiveInt = 100
    """Train steps between two copies of the parameters to the target network."""
    explore_end: Probability = 0.05
    """The share of random actions in the end; at first it is 1."""
    explore_steps: PositiveInt = 1_000
    """Train steps in which it falls in a line."""
    largest_error: PositiveFloat = 1.0
    """Where the Huber loss turns from a square to a line."""
    double: bool = True
    """The present parameters choose the action whose value the target network gives (van Hasselt
    et al., 2016)."""
    dueling: bool = False
    """The model gives a value, and then the advantage of each action (Wang et al., 2016, equation
    9)."""
    priority: NonNegativeFloat = 0.0
    """Steps are drawn by their error to this power (Schaul et al., 2016); 0: each as often."""
    correction: Probability = 0.4
    """The power of the weights that correct for that, divided by a row's largest."""

    def check_fields(self) -> None:
        if self.capacity % self.play:
            raise Refused(f"capacity {self.capacity}: it must be a multiple of play, {self.play}.")

    def outputs(self, actions: int) -> int:
        return actions + self.dueling

    def values(self, outputs: jax.Array) -> jax.Array:
        """The value of each action [..., A], in float32 or wider."""
        outputs = upcast(outputs)
        if not self.dueling:
            return outputs
        advantages = outputs[..., 1:]
        return outputs[..., :1] + advantages - jnp.mean(advantages, axis=-1, keepdims=True)

    def act(self, outputs: jax.Array, key: jax.Array, count: jax.Array) -> jax.Array:
        of_chance, of_action = jax.random.split(key)
        share = 1 - (1 - self.explore_end) * jnp.minimum(count / self.explore_steps, 1)
        values = self.values(outputs)
        drawn = jax.random.randint(of_action, (), 0, len(values))
        return jnp.where(jax.random.uniform(of_chance) < share, drawn, jnp.argmax(values))

    def best(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        values = self.values(outputs)
        return jnp.argmax(values, axis=-1), jnp.max(values, axis=-1), jnp.max(values, axis=-1)

    def memory(self, observation: jax.Array) -> dict[str, jax.Array]:
        shape = (observation.shape[0], self.capacity)
        seen = jnp.zeros((*shape, *observation.shape[1:]), observation.dtype)
        return {
            "observation": seen,
            "action": jnp.zeros(shape, jnp.int32),
            "reward": jnp.zeros(shape),
            "next": seen,
            "terminated": jnp.zeros(shape, bool),
            "ended": jnp.zeros(shape, bool),
            "priority": jnp.zeros(shape),
        }

    def begin(self, forward: nn.Module) -> None:
        target = jax.tree.map(jnp.copy, forward.variables["params"])
        forward.put_variable(TARGET, "params", target)

    def learn(self, forward: nn.Module, batch: Batch, key: jax.Array) -> Sums:
        model, variables = frozen(forward)
        inputs = batch["inputs"]
        of_play, of_draw = jax.random.split(key)
        actors = forward.get_variable(CARRY, "actors")
        count = actors["count"]  # [B], all equal
        actors, happened = self._play(model, variables, actors, inputs, of_play)
        replay = forward.get_variable(CARRY, "memory")
        replay = jax.vmap(written)(replay, happened, count * self.play)
        filled = jnp.minimum((count + 1) * self.play, self.capacity)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(of_draw, inputs)
        places, weights = jax.vmap(self.draw)(replay["priority"], filled, keys)  # [B, S]
        newest = ((count + 1) * self.play - 1) % self.capacity
        drawn = jax.vmap(jax.vmap(self.drawn, (None, 0, None)))(replay, places, newest)

        target = jax.tree.map(
            lambda old, new: jnp.where(jnp.max(count) % self.copy_every == 0, new, old),
            forward.get_variable(TARGET, "params"),
            variables["params"],
        )
        slow = {**variables, "params": target}
        after = self.values(over_time(partial(model.apply, slow), drawn["next"]))  # [B, S, A]
        choice = after
        if self.double:
            choice = self.values(over_time(partial(model.apply, variables), drawn["next"]))
        wanted = q_targets(drawn["reward"], drawn["terminated"], after, choice, drawn["discount"])
        values = self.values(over_time(partial(forward, train=True), drawn["observation"]))
        value = jnp.take_along_axis(values, drawn["action"][..., None], axis=-1)[..., 0]  # [B, S]
        losses = jnp.mean(
            weights * optax.huber_loss(value, wanted, delta=self.largest_error), axis=1
        )  # [B]
        errors = jnp.abs(jax.lax.stop_gradient(value) - wanted) + LEAST
        rows = jnp.arange(len(places))[:, None]
        replay["priority"] = replay["priority"].at[rows, places].set(errors)
        forward.put_variable(
            TARGET, "params", as_before(target, forward.get_variable(TARGET, "params"))
        )
        forward.put_variable(CARRY, "actors", {**actors, "count": count + 1})
        forward.put_variable(CARRY, "memory", replay)
        mask = batch["mask"]
        return {
            "loss": masked(losses, mask),
            "return": masked(actors["last"], mask),
            "value": masked(jnp.mean(value, axis=1), mask),
        }

    def draw(
        self, priorities: jax.Array, filled: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Places in one actor's replay [S], and the weights of their losses [S], at most 1.

        Args:
          priorities: [C].
          filled: how many of the places hold a step, a scalar.
          key: a random key.
        """
        chances = jnp.where(jnp.arange(self.capacity) < filled, priorities**self.priority, 0)
        chances /= jnp.sum(chances)
        places = jax.random.choice(key, self.capacity, (self.samples,), p=chances)
        weights = (filled * chances[places]) ** -self.correction
        return places, weights / jnp.max(weights)

    def drawn(self, replay: Any, place: jax.Array, newest: jax.Array) -> dict[str, jax.Array]:
        """A step of an actor's replay, with the `reward` of it and of those that follow, what is
        seen `next` after these, whether they `terminated`, and the `discount` of what follows.

        They end where the episode does, and with the newest step.

        Args:
          replay: arrays [C, ...] by name.
          place: of the step, a scalar.
          newest: the place of the newest step, a scalar.
        """
        later = jnp.arange(self.rewards)
        at = (place + later) % self.capacity
        ended = replay["ended"][at]
        before = jnp.cumsum(ended) - ended  # episodes that ended before
        real = (later <= (newest - place) % self.capacity) & (before == 0)
        factors = jnp.where(real, self.discount**later, 0)
        last = at[jnp.sum(real) - 1]
        return {
            "observation": replay["observation"][place],
            "action": replay["action"][place],
            "reward": jnp.sum(factors * replay["reward"][at]),
            "next": replay["next"][last],
            "terminated": replay["terminated"][last],
            "discount": self.discount ** jnp.sum(real),
        }


def written(replay: Any, happened: Any, steps: jax.Array) -> Any:
    """One actor's replay with new steps in place of its oldest.

    A new step has the largest priority that there is, and at least 1.

    Args:
      replay: arrays [C, ...] by name.
      happened: arrays [T, ...] by name, those of the replay among them; T divides C.
      steps: how many were written before, a scalar.
    """
    largest = jnp.maximum(jnp.max(replay["priority"]), 1)
    new = {**happened, "priority": jnp.full(happened["reward"].shape, largest)}
    begin = steps % len(replay["priority"])
    return {
        name: jax.lax.dynamic_update_slice_in_dim(old, new[name].astype(old.dtype), begin, 0)
        for name, old in replay.items()
    }


def q_targets(
    rewards: jax.Array,
    terminated: jax.Array,
    after: jax.Array,
    choice: jax.Array,
    discount: jax.Array | float,
) -> jax.Array:
    """What the values should be: r + discount * after[argmax choice], and r alone at an end.

    Args:
      rewards: [...].
      terminated: [...]; an episode that its limit of steps cuts is none of them.
      after: the values of actions by the target network, in what was seen next [..., A].
      choice: the values by which the action is chosen [..., A].
      discount: the factor of what comes next, a scalar or [...].
    """
    best = jnp.argmax(choice, axis=-1)[..., None]
    next_value = jnp.take_along_axis(after, best, axis=-1)[..., 0]
    return rewards + discount * jnp.where(terminated, 0, next_value)
