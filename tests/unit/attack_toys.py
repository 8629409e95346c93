"""A toy attack and a toy victim, for the tests of the attack driver."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import attacks, blackbox
from zojax.attacks import Ask, Attack, Goal
from zojax.attacks.kernel import is_reached, margin

RISE = 1 / 32  # exact in float32, so that thresholds are met exactly
NUM_STEPS = 12


class ToyState(NamedTuple):
    x: jax.Array
    goal: Goal
    step: jax.Array
    best: jax.Array
    found: jax.Array


def toy(answers="scores", stops=True, num_unused=0):
    """Asks about x + step * RISE twice, the second time as a check; keeps the first one found."""

    def init(x, goal, key):
        del key
        zero = jnp.zeros((), jnp.int32)
        return ToyState(x, goal, zero, x, jnp.zeros((), bool))

    def ask(state):
        point = jnp.clip(state.x + (state.step + 1).astype(jnp.float32) * RISE, 0.0, 1.0)
        points = jnp.broadcast_to(point, (3, *point.shape))
        used = jnp.asarray([True, True, False]) & (state.step >= num_unused)
        return Ask(points, used, jnp.asarray([False, True, True]))

    def tell(state, given):
        if answers == "scores":
            hit = jnp.any(margin(given, state.goal)[:2] < 0)
        else:
            hit = jnp.any(is_reached(given, state.goal)[:2])
        best = jnp.where(hit & ~state.found, ask(state).points[0], state.best)
        return state._replace(step=state.step + 1, best=best, found=state.found | hit)

    def is_done(state):
        return (state.step >= NUM_STEPS) | (state.found & stops)

    return Attack("toy", answers, init, ask, tell, lambda s: (s.best, s.found), is_done)


TOY = toy()
MINIMISING = toy(stops=False)
BY_LABEL = toy("labels")
KEY = jax.random.key(0)


class Victim:
    """Class 0 while the first pixel is below a half; notes the rows it receives."""

    def __init__(self, kind="scores", script=()):
        self.kind = kind
        self.script = list(script)
        self.rows = []

    def __call__(self, batch):
        assert len(batch)
        self.rows.extend(batch.copy())
        if self.script and (spoil := self.script.pop(0)):
            spoil()
        is_high = batch[:, 0] >= 0.5
        if self.kind == "labels":
            return is_high.astype(int)
        return np.stack([0.5 - batch[:, 0], np.where(is_high, 1.0, -1.0)], axis=1)


def inputs(steps):
    """Inputs that need so many steps of RISE to reach a half."""
    return np.stack([0.5 - np.asarray(steps) * RISE, np.full(len(steps), 0.25)], axis=1)


def run(steps, attack=TOY, victim=None, labels=None, driver=None, **limits):
    victim = victim or Victim()
    build = blackbox.score_oracle if victim.kind == "scores" else blackbox.label_oracle
    oracle = build(victim, **limits)
    labels = np.zeros(len(steps), int) if labels is None else labels
    results = attacks.run(attack, oracle, inputs(steps), labels, KEY, **(driver or {}))
    assert len(victim.rows) == results.queries.sum() == oracle.counts.total.sum()
    return results
