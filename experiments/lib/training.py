"""The training loop: a Python loop over jitted chunks of steps, resumable to the same bits."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import zojax
from experiments.lib.checkpoint import CheckpointStore
from experiments.lib.classifier import Evaluator, Task
from experiments.lib.cluster import Cluster
from experiments.lib.errors import UserError
from experiments.lib.progress import Progress
from experiments.lib.runs import RunDirectory


class Carry(NamedTuple):
    """Everything a step depends on and changes.

    Attributes:
        params: Parameters.
        opt_state: State of the optax chain.
        step: Steps done, int32 of shape ().
    """

    params: Any
    opt_state: optax.OptState
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train and what a step costs.

    Attributes:
        num_steps: Steps of the whole run.
        eval_interval: Steps between evaluations (and checkpoints).
        queries_per_step: Loss evaluations per step.
        forwards_per_step: Examples pushed through the model per step (a first-order step counts
            as three forward passes).
    """

    num_steps: int
    eval_interval: int
    queries_per_step: int
    forwards_per_step: int


def make_chunk(
    task: Task, tx: optax.GradientTransformationExtraArgs, batch_size: int, first_order: bool
) -> Callable[..., tuple[Carry, jax.Array]]:
    """Compiles a chunk of training steps.

    Args:
        task: The loss.
        tx: A chain that starts with an estimator, or, with `first_order`, a plain optimiser.
        batch_size: Examples per step, drawn with replacement; all points of a step share them.
        first_order: Differentiate the loss instead of estimating its gradient.

    Returns:
        `(carry, num_steps, images, labels, data_key) -> (carry, mean loss)`. The number of steps
        is traced, so chunks of any length share one compilation; the data are arguments, because
        arrays captured as constants take tens of seconds to compile.
    """

    def step(carry: Carry, images: Any, labels: Any, data_key: Any) -> tuple[Carry, jax.Array]:
        params, opt_state, count = carry
        key = jax.random.fold_in(data_key, count)
        chosen = jax.random.randint(key, (batch_size,), 0, labels.shape[0])
        batch = (images[chosen], labels[chosen])
        if first_order:
            value, grads = jax.value_and_grad(task.loss_fn)(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
        else:
            updates, opt_state = tx.update(
                None, opt_state, params, value_fn=lambda p: task.loss_fn(p, batch)
            )
            value = opt_state[0].value
        return Carry(optax.apply_updates(params, updates), opt_state, count + 1), value

    @jax.jit
    def chunk(
        carry: Carry, num_steps: Any, images: Any, labels: Any, data_key: Any
    ) -> tuple[Carry, jax.Array]:
        def body(_: Any, state: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            carry, total = state
            carry, value = step(carry, images, labels, data_key)
            return carry, total + value

        carry, total = jax.lax.fori_loop(0, num_steps, body, (carry, jnp.zeros(())))
        return carry, total / num_steps  # NaN after no step, which only compiles

    return chunk


def _signal_to_noise(carry: Carry) -> float | None:
    """Of the last step's estimate; None where there is no estimator."""
    state = carry.opt_state[0]
    is_estimate = isinstance(state, zojax.ZerothOrderState)
    return float(state.info.signal_to_noise) if is_estimate else None


class Trainer:
    """Runs a plan: chunks of steps, evaluations, metrics and checkpoints.

    Attributes:
        cluster: The devices that train.
    """

    def __init__(
        self,
        task: Task,
        chunk: Callable[..., tuple[Carry, jax.Array]],
        data_key: jax.Array,
        plan: Plan,
        description: str,
        cluster: Cluster | None = None,
    ) -> None:
        """Collects the parts.

        Args:
            task: The loss and its data; the training part where the cluster replicates it.
            chunk: From `make_chunk`.
            data_key: Step t draws its batch from `fold_in(data_key, t)`.
            plan: How long to train.
            description: Shown by the progress display.
            cluster: The devices; None for one.
        """
        self._task, self._chunk, self.cluster = task, chunk, cluster or Cluster()
        self._data_key = self.cluster.replicate(data_key)
        self._plan, self._description = plan, description
        self._evaluator = Evaluator(task.module)

    def run(
        self,
        carry: Carry,
        seconds: float,
        record: Callable[[dict[str, Any]], None] | None,
        save: Callable[[int, Carry, float], None],
    ) -> tuple[Carry, float]:
        """Trains from `carry` to the end of the plan; one process of the cluster reports.

        Args:
            carry: A fresh or a restored state, replicated by the cluster.
            seconds: Training time spent before.
            record: Receives a row of metrics at every evaluation.
            save: Receives `(step, carry, seconds)` at every evaluation.

        Returns:
            The final state and the training time, which includes compilation and evaluation.

        Raises:
            UserError: If the loss stops being finite.
        """
        plan, start = self._plan, time.perf_counter() - seconds
        done, since = int(carry.step), time.perf_counter()
        with Progress(plan.num_steps, self._description) as progress:
            while done < plan.num_steps:
                count = min(plan.eval_interval - done % plan.eval_interval, plan.num_steps - done)
                carry, value = self.advance(carry, count)
                done += count
                if not jnp.isfinite(value):
                    raise UserError(
                        f"the training loss became {float(value)} by step {done}: lower "
                        "--learning-rate or change --sigma in a new run"
                    )
                rate = count / (time.perf_counter() - since)
                local = self.cluster.fetch(carry)
                if not self.cluster.is_writer:
                    continue
                accuracy, loss = self._evaluator.score(local.params, self._task.validation)
                row = {
                    "step": done,
                    "queries": done * plan.queries_per_step,
                    "sample_forwards": done * plan.forwards_per_step,
                    "seconds": time.perf_counter() - start,
                    "train_loss": float(value),
                    "loss": loss,
                    "accuracy": accuracy,
                }
                snr = _signal_to_noise(local)
                if snr is not None:
                    row["signal_to_noise"] = snr
                record(row)
                save(done, local, row["seconds"])
                progress.update(
                    done,
                    loss=loss,
                    accuracy=accuracy,
                    queries_per_second=rate * plan.queries_per_step,
                    images_per_second=rate * plan.forwards_per_step,
                    signal_to_noise=snr,
                )
                since = time.perf_counter()
        return carry, time.perf_counter() - start

    def advance(self, carry: Carry, count: int) -> tuple[Carry, float]:
        """Runs `count` steps; returns the new state and the mean training loss."""
        images, labels = self._task.train
        num_steps = self.cluster.replicate(jnp.asarray(count, jnp.int32))
        with jax.transfer_guard("disallow"):  # a hidden copy inside a chunk would be an error
            carry, value = self._chunk(carry, num_steps, images, labels, self._data_key)
        return carry, float(jax.device_get(value))


def steps_within(trainer: Trainer, carry: Carry, seconds: float) -> int:
    """Times a few steps and returns how many fit into `seconds`.

    Args:
        trainer: A trainer; its plan's length does not matter.
        carry: A state, which is not changed.
        seconds: The budget, which the compilation done here already draws on.
    """
    cluster, start = trainer.cluster, time.perf_counter()
    carry = cluster.replicate(carry)
    trainer.advance(carry, 0)
    compilation = time.perf_counter() - start
    count, elapsed = 1, 0.0
    while elapsed < min(1.0, seconds / 20):
        count *= 4
        since = time.perf_counter()
        trainer.advance(carry, count)
        elapsed = cluster.agree(time.perf_counter() - since)
    # The schedules of the real plan compile anew.
    left = seconds - (time.perf_counter() - start) - compilation
    # Evaluations, metrics and checkpoints take a share too.
    return cluster.agree(max(1, int(0.95 * left * count / elapsed)))


class Saver:
    """Checkpoints of a run: the state, the length of the plan and the time spent."""

    def __init__(self, run: RunDirectory) -> None:
        """Opens the checkpoints of a run.

        Args:
            run: The run's folder.
        """
        self._store = CheckpointStore(run.checkpoints_dir)

    def save(self, step: int, carry: Carry, seconds: float, num_steps: int) -> None:
        """Writes a checkpoint."""
        self._store.save(step, {"carry": carry, "seconds": seconds, "num_steps": num_steps})

    def restore(self, like: Carry) -> tuple[Carry, float, int] | None:
        """Returns `(carry, seconds, num_steps)` of the newest checkpoint, None if there is none.

        Args:
            like: A state of the same structure.
        """
        step = self._store.latest()
        if step is None:
            return None
        stored = self._store.restore(step, {"carry": like, "seconds": 0.0, "num_steps": 0})
        return stored["carry"], stored["seconds"], stored["num_steps"]
