"""The training loop of `experiments.robust_training`: all seeds of a method at once."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.classifier import Task
from experiments.lib.errors import UserError
from experiments.lib.progress import Progress
from experiments.lib.robust_first_order import Gradient, Method

_NUM_LINES = 4  # of progress per method


class Budget(Protocol):
    """What the loop reads from an experiment's configuration."""

    sample_forwards: float
    backprop_steps: int
    num_seeds: int
    seed: int


def make_chunk(
    method: Method, gradient: Gradient, tx: optax.GradientTransformation
) -> Callable[..., tuple[Any, optax.OptState]]:
    """Compiles a chunk of training steps for all seeds at once.

    Args:
        method: The batch size and the projection.
        gradient: What to descend along.
        tx: The optimiser.
    """

    def step(params: Any, state: Any, key: jax.Array, data: Any) -> tuple[Any, Any]:
        batch_key, noise_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (method.batch_size,), 0, len(data[1]))
        batch = jax.tree.map(lambda x: x[chosen], data)
        updates, state = tx.update(gradient(params, noise_key, batch), state, params)
        return method.project(optax.apply_updates(params, updates)), state

    @jax.jit
    def chunk(params: Any, state: Any, start: Any, stop: Any, keys: Any, data: Any) -> Any:
        def body(count: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
            return jax.vmap(step, (0, 0, 0, None))(*carry, step_keys, data)

        return jax.lax.fori_loop(start, stop, body, (params, state))

    return chunk


def train(config: Budget, task: Task, name: str, method: Method) -> tuple[Any, int, float]:
    """Trains one network per seed.

    Args:
        config: The configuration.
        task: The loss and its data.
        name: Of the method.
        method: What to descend along.

    Returns:
        Parameters with a leading axis of seeds, the number of steps, and the seconds it took.
    """
    num_steps = max(1, int(config.sample_forwards // method.forwards))
    if name == "backprop":
        num_steps = min(num_steps, config.backprop_steps)
    schedule = optax.cosine_decay_schedule(method.learning_rate, num_steps, 0.01)
    tx = optax.adamw(schedule, weight_decay=method.weight_decay)
    seeds = [jax.random.key(config.seed + i) for i in range(config.num_seeds)]
    keys = jax.vmap(jax.random.split)(jnp.stack(seeds))  # of parameters, of steps
    params = jax.vmap(task.init)(keys[:, 0])
    state = jax.vmap(tx.init)(params)
    chunk, began = make_chunk(method, method.gradient, tx), time.perf_counter()
    switch = round(method.early_share * num_steps)
    loss_fn = jax.jit(lambda params, data: jax.vmap(task.loss_fn, (0, None))(params, data).mean())
    stops = np.unique([*np.linspace(0, num_steps, _NUM_LINES + 1).astype(int), switch])
    with Progress(num_steps, method.label) as progress:
        for start, stop in zip(stops[:-1], stops[1:], strict=True):
            if start == switch and method.late_gradient:
                chunk = make_chunk(method, method.late_gradient, tx)
            params, state = chunk(params, state, start, stop, keys[:, 1], task.train)
            loss = float(loss_fn(params, task.validation))
            if not np.isfinite(loss):
                raise UserError(
                    f"the loss of {name} became {loss} by step {stop}: use a lower learning rate"
                )
            progress.update(int(stop), loss=loss)
    return params, num_steps, time.perf_counter() - began
