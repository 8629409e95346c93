"""Runs an attack on many examples at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.inputs import (
    read_classes,
    read_inputs,
)
from zojax.attacks.kernel import Attack, Goal
from zojax.attacks.pursuit import pursue
from zojax.attacks.results import Results
from zojax.blackbox import Oracle
from zojax.errors import check_at_least, check_instance
from zojax.keys import check_key
from zojax.types import PRNGKey


def run(
    attack: Attack,
    oracle: Oracle,
    x: Any,
    labels: Any,
    key: PRNGKey,
    *,
    targets: Any = None,
    batch_size: int | None = None,
    max_steps: int | None = None,
    milestones: tuple[int, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Attacks every input, to evaluate the robustness of a model you own.

    Each input is first checked, one query: if it fulfils the goal already, that is all. All others
    take steps together. A sample leaves when the attack is done with it, or when its next step
    would cost more than what the oracle's budget leaves it: that step is not started, so the budget
    is never exceeded, and up to a step's queries may stay unspent. Entry i of `x` is sample i of
    the oracle; an oracle that was asked before has spent part of its budget, so build a new one
    for each run. What a sample does depends on `key` and its place in `x`, not on the others.

    Where the oracle records failures instead of raising, a sample goes on without the answer, and
    ends after three consecutive steps in which none of its rows was answered.

    >>> import jax
    >>> import numpy as np
    >>> from zojax import attacks, blackbox
    >>> def model(x):
    ...     value = x.sum(axis=1) - 1
    ...     return np.stack([value, -value], axis=1)
    >>> oracle = blackbox.score_oracle(model, budget=100)
    >>> x = np.asarray([[0.6, 0.6], [0.2, 0.2]])
    >>> results = attacks.run(attacks.sign_hunter(0.2), oracle, x, [0, 0], jax.random.key(0))
    >>> results.status.tolist(), results.queries.tolist()
    (['success', 'already'], [3, 1])

    Args:
      attack: e.g. `zojax.attacks.square(0.3)`; compiled once per object and shape, so keep it.
      oracle: of `zojax.blackbox`; a score oracle also serves attacks that need labels only.
      x: inputs, (b, ...), within [0, 1]; b may be 0.
      labels: their true classes, integers (b,).
      key: typed key of shape ().
      targets: classes to be reached, integers (b,), which makes the attack targeted: an input whose
        answer is its target is "already" there, and whether it is its label does not matter.
      batch_size: samples attacked at the same time, one batch after the other; None for all. Bounds
        memory, b times the points of a step otherwise, and changes no result.
      max_steps: steps per sample at most; None for no bound.
      milestones: numbers of queries at which the distortion reached is noted.
      progress: called after every step with the numbers of finished samples and of rows sent.

    Returns:
      `Results`.

    Raises:
      AttackInterrupted: if anything raises on the way (the oracle, `progress`), or the user
        interrupts; it holds the results so far.
      ValueError: for arguments that do not fit together, before anything is asked; for a class that
        does not exist, after the inputs were checked if the oracle did not know how many there are.
    """
    inputs, goal = _read(attack, oracle, x, labels, targets)
    check_key(key)
    _check_fits(attack, inputs, key)
    if batch_size is not None:
        check_at_least("batch_size", batch_size, 1)
    if max_steps is not None:
        check_at_least("max_steps", max_steps, 1)
    for milestone in milestones:
        check_at_least("milestones", milestone, 1)
    return pursue(
        attack,
        oracle,
        inputs,
        goal,
        key,
        samples=np.arange(len(inputs)),
        first=inputs,
        batch_size=batch_size,
        max_steps=max_steps,
        milestones=milestones,
        progress=progress,
    )


def _read(
    attack: Attack, oracle: Oracle, x: Any, labels: Any, targets: Any
) -> tuple[np.ndarray, Goal]:
    """Checks what `run` was given; the goal holds one entry per sample."""
    check_instance("attack", attack, Attack, "an attack such as zojax.attacks.square(0.3)")
    check_instance("oracle", oracle, Oracle, "made by zojax.blackbox.score_oracle or label_oracle")
    if attack.answers == "scores" and oracle.kind == "labels":
        raise ValueError(f"{attack.name} needs scores, but this oracle answers labels only")
    inputs = read_inputs(x)
    truth = read_classes("labels", labels, oracle, len(inputs))
    if targets is None:
        return inputs, Goal(truth, np.zeros(len(inputs), bool))
    goals = read_classes("targets", targets, oracle, len(inputs))
    return inputs, Goal(goals, np.ones(len(inputs), bool))


def _check_fits(attack: Attack, inputs: np.ndarray, key: PRNGKey) -> None:
    """Lets the attack refuse inputs of this shape before anything is asked."""
    shaped = jax.ShapeDtypeStruct
    goal = Goal(shaped((), jnp.int32), shaped((), bool))
    jax.eval_shape(attack.init, shaped(inputs.shape[1:], jnp.float32), goal, key)
