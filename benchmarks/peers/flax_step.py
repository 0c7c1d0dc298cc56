"""The train step of flax.linen's examples: `TrainState`, optax, one jitted function."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import DECAY, RATE
from flax import traverse_util
from flax.training import train_state
from side import Side


class TrainState(train_state.TrainState):
    batch_stats: Any


def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Any]:
    """One update, and the loss and accuracy of the batch before it."""

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(
            variables, batch["inputs"], train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return losses.mean(), (logits, changed.get("batch_stats", {}))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, batch_stats=stats)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["targets"])
    return state, {"loss": loss, "accuracy": accuracy}


def make(case: str, ours: dict[str, np.ndarray], rows: dict[str, np.ndarray]) -> Side:
    """The rival of a case, with our parameters.

    Raises:
      ValueError: its parameters have other names or shapes.
    """
    module = importlib.import_module(f"flax_{case}")
    model = module.Model()
    batch = {name: jnp.asarray(rows[name]) for name in ("inputs", "targets")}
    variables = jax.jit(model.init, static_argnames="train")(
        jax.random.key(0), batch["inputs"], train=True
    )
    params = traverse_util.unflatten_dict(module.from_ours(ours), sep="/")
    params = jax.tree.map(jnp.array, params)
    wanted = jax.tree.map(jnp.shape, variables["params"])
    given = jax.tree.map(jnp.shape, params)
    if wanted != given:
        raise ValueError(f"{case}: flax's parameters are {wanted}, ours give {given}.")
    state = TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=optax.adamw(RATE, weight_decay=DECAY),
        batch_stats=variables.get("batch_stats", {}),
    )
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Side(step, sum(leaf.size for leaf in jax.tree.leaves(params)), compiled)
