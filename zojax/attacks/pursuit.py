"""Pursues the goals of many samples at once: asks, counts, and lets finished samples go."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.inputs import (
    PATIENCE,
    ask_labels,
    check_known,
)
from zojax.attacks.kernel import Ask, Attack, Goal, distance, is_reached
from zojax.attacks.results import AttackInterrupted, Records, Results
from zojax.blackbox import Oracle, OracleError
from zojax.blackbox.ledger import Purpose
from zojax.types import PRNGKey, Scalar, State

_SMALLEST = 8  # slots at least, so that the last few samples share one compiled program
_PAYS_OFF = 20_000  # steps of empty slots that cost about as much as compiling for fewer slots


class _Slots(NamedTuple):
    """What lies on the device: p slots, a power of two, of which some may not be used any more."""

    x: chex.Array
    state: State


class _View(NamedTuple):
    """What the host needs to know about each slot after a step."""

    ask: Ask
    is_done: Scalar
    found: Scalar
    distances: chex.Array


class _Active(NamedTuple):
    """The samples under attack: `samples[j]` sits in slot `places[j]`.

    One object, replaced as a whole, so that an interruption finds it consistent.
    """

    samples: np.ndarray
    places: np.ndarray
    slots: Any
    view: Any


class _Programs(NamedTuple):
    """An attack, vectorised and compiled for each number of slots."""

    start: Callable[..., tuple[_Slots, _View]]
    advance: Callable[..., tuple[_Slots, _View]]
    best: Callable[..., chex.Array]
    take: Callable[..., _Slots]


@functools.lru_cache(maxsize=64)
def _compile(attack: Attack) -> _Programs:
    """Kept per attack, so that a second run compiles nothing."""

    def view(slot: _Slots) -> _View:
        best, found = attack.best(slot.state)
        distances = jnp.stack([distance(best, slot.x, "l2"), distance(best, slot.x, "linf")])
        return _View(attack.ask(slot.state), attack.is_done(slot.state), found, distances)

    def start(x: chex.Array, goal: Goal, key: PRNGKey, sample: Scalar) -> tuple[_Slots, _View]:
        slot = _Slots(x, attack.init(x, goal, jax.random.fold_in(key, sample)))
        return slot, view(slot)

    def advance(slot: _Slots, answers: chex.Array) -> tuple[_Slots, _View]:
        slot = slot._replace(state=attack.tell(slot.state, answers))
        return slot, view(slot)

    def best(slot: _Slots) -> chex.Array:
        return attack.best(slot.state)[0]

    def take(slots: _Slots, index: chex.Array) -> _Slots:
        return jax.tree.map(lambda leaf: leaf[index], slots)

    return _Programs(
        start=jax.jit(jax.vmap(start, in_axes=(0, 0, None, 0))),
        advance=jax.jit(jax.vmap(advance)),
        best=jax.jit(jax.vmap(best)),
        take=jax.jit(take),
    )


def pursue(
    attack: Attack,
    oracle: Oracle,
    x: np.ndarray,
    goal: Goal,
    key: PRNGKey,
    *,
    samples: np.ndarray,
    first: np.ndarray | None,
    reserve: int = 0,
    batch_size: int | None = None,
    max_steps: int | None = None,
    milestones: tuple[int, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """What `run` does with arguments that are known to be right; explanations use it too.

    Args:
      attack: as in `run`.
      oracle: as in `run`.
      x: float32 (b, ...).
      goal: one entry per sample.
      key: as in `run`.
      samples: which to pursue, increasing; the others cost nothing and stay "interrupted".
      first: where the goal may be reached already, (b, ...), one query each; None: nowhere.
      reserve: queries of each sample's budget to be left unspent.
      batch_size: as in `run`.
      max_steps: as in `run`.
      milestones: as in `run`.
      progress: as in `run`.

    Raises:
      AttackInterrupted: as `run`.
      ValueError: for a class that does not exist.
    """
    loop = _Run(attack, oracle, x, goal, milestones, reserve)
    with loop.kept(samples):
        pending = samples if first is None else loop.check(first, samples)
    check_known("targets" if goal.is_targeted.any() else "labels", goal.label, oracle)
    size = batch_size or max(pending.size, 1)
    with loop.kept(samples):
        for start in range(0, pending.size, size):
            loop.start(pending[start : start + size], key)
            num_waiting = max(pending.size - start - size, 0)
            while loop.active.samples.size:
                loop.step(max_steps)
                if progress is not None:
                    finished = len(samples) - num_waiting - loop.active.samples.size
                    progress(finished, loop.records.num_queries())
    return loop.records.results()


class _Run:
    """The loop's variables."""

    def __init__(
        self,
        attack: Attack,
        oracle: Oracle,
        x: np.ndarray,
        goal: Goal,
        milestones: tuple[int, ...],
        reserve: int,
    ) -> None:
        self.attack = attack
        self.oracle = oracle
        self.x = x
        self.goal = goal
        self.reserve = reserve
        self.records = Records(x, oracle, milestones)
        self.programs = _compile(attack)
        nobody = np.zeros(0, np.int64)
        self.active = _Active(nobody, nobody, None, None)
        self.num_steps = 0
        self.num_empty = 0
        self.num_silent = np.zeros(len(x), np.int64)

    @contextlib.contextmanager
    def kept(self, samples: np.ndarray) -> Iterator[None]:
        """Hands over what was found where anything ends the attack.

        Args:
          samples: which are pursued.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.active.samples.size:
                self._note()  # an interruption may have come just before it
            self.leave(np.ones(self.active.samples.size, bool), "interrupted")
            results = self.records.results()
            unfinished = int(np.sum(results.status[samples] == "interrupted"))
            remark = f"{unfinished} of {len(samples)} samples without a result"
            raise AttackInterrupted(results, remark, error) from error

    def check(self, points: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Finds out where the goal is reached already.

        Args:
          points: (b, ...).
          samples: which to ask about, (n,).

        Returns:
          The samples to attack, increasing.
        """
        labels, is_covered = ask_labels(self.oracle, points, samples, self.reserve)
        already = np.asarray(is_reached(labels, Goal(*(part[samples] for part in self.goal))))
        is_known = labels >= 0
        self.records.finish(samples[~is_covered], "budget")
        self.records.finish(samples[is_covered & ~is_known], "oracle_failed")
        self.records.finish_already(samples[already])
        return samples[is_known & ~already]

    def start(self, samples: np.ndarray, key: PRNGKey) -> None:
        """Puts samples into slots.

        Args:
          samples: which, (n,).
          key: of the run.
        """
        self.num_steps = self.num_empty = 0
        padded = np.resize(samples, _power_of_two(samples.size))
        goal = Goal(*(jnp.asarray(part[padded]) for part in self.goal))
        slots, view = self.programs.start(
            jnp.asarray(self.x[padded]), goal, key, jnp.asarray(padded, jnp.int32)
        )
        self.active = _Active(samples, np.arange(samples.size), slots, _fetch(view))
        self._leave_done()

    def step(self, max_steps: int | None) -> None:
        """Lets every sample that can afford it take one step.

        Args:
          max_steps: how many may be taken.
        """
        if self.num_steps == max_steps:
            self.leave(np.ones(self.active.samples.size, bool), "failed")
            return
        self.num_steps += 1
        cost = self.active.view.ask.used[self.active.places].sum(axis=1)
        left = self.oracle.remaining(self.active.samples) - self.reserve
        self.leave(cost > left, "budget")
        samples, places, slots, view = self.active
        if not samples.size:
            return
        answers, was_answered, error = self._ask(samples, places, view.ask)
        was_asked = view.ask.used[places].any(axis=1)
        slots, view = self.programs.advance(slots, answers)
        self.active = _Active(samples, places, slots, _fetch(view))
        self._note()
        self.num_silent[samples[was_asked & ~was_answered]] += 1
        self.num_silent[samples[was_answered]] = 0
        self._leave_done()
        if error is not None:
            raise error
        self.leave(self.num_silent[self.active.samples] >= PATIENCE, "oracle_failed")
        self._compact()

    def _note(self) -> None:
        """Notes what is known of the active samples; to note it twice changes nothing."""
        samples, places, _, view = self.active
        self.records.note(samples, view.found[places], view.distances[places].T)

    def _ask(
        self, samples: np.ndarray, places: np.ndarray, ask: Ask
    ) -> tuple[np.ndarray, np.ndarray, OracleError | None]:
        """Sends what the samples want to know, and nothing else.

        Returns:
          Answers for every slot, (p, q, ...), whether each sample got any, bool (n,), and what the
          oracle raised: what it had answered before is worth a last step.
        """
        needs_scores = self.attack.answers == "scores"
        shape = ask.used.shape
        if needs_scores:
            answers = np.full((*shape, self.oracle.num_classes or 0), np.nan, np.float32)
        else:
            answers = np.full(shape, -1, np.int32)
        was_answered = np.zeros(samples.size, bool)
        purposes: tuple[tuple[Purpose, bool], ...] = (("loss", False), ("check", True))
        for purpose, is_check in purposes:
            row, column = np.nonzero(ask.used[places] & (ask.is_check[places] == is_check))
            points, owners = ask.points[places[row], column], samples[row]
            if not row.size:
                continue
            ask_oracle = self.oracle.scores if needs_scores else self.oracle.labels
            error = None
            try:
                values = ask_oracle(points, owners, purpose=purpose)
            except OracleError as raised:
                values, error = raised.answers, raised
            is_answer = ~np.isnan(values).any(axis=1) if needs_scores else values >= 0
            if is_answer.any():
                answers[places[row], column] = values
                was_answered[row[is_answer]] = True
            if error is not None:
                return answers, was_answered, error
        return answers, was_answered, None

    def leave(self, which: np.ndarray, status: str) -> None:
        """Ends samples under attack.

        Args:
          which: of the active ones, bool (n,).
          status: why.
        """
        if not which.any():
            return
        samples, places, slots, view = self.active
        best = np.asarray(self.programs.best(slots))
        self.records.finish(samples[which], status, best[places[which]])
        self.active = _Active(samples[~which], places[~which], slots, view)

    def _leave_done(self) -> None:
        self.leave(self.active.view.is_done[self.active.places], "failed")

    def _compact(self) -> None:
        """Moves the samples to a quarter of the slots, or fewer.

        Each number of slots is compiled anew, so only when empty slots have cost as much: that is
        at most twice what could have been known in advance, and the same in every run.
        """
        samples, places, slots, view = self.active
        size, num_slots = _power_of_two(samples.size), len(view.is_done)
        self.num_empty += num_slots - samples.size
        if not samples.size or size > num_slots // 4 or self.num_empty < _PAYS_OFF:
            return
        self.num_empty = 0
        index = np.resize(places, size)
        slots = self.programs.take(slots, index)
        view = jax.tree.map(lambda leaf: leaf[index], view)
        self.active = _Active(samples, np.arange(samples.size), slots, view)


def _fetch(view: _View) -> Any:
    return jax.tree.map(np.asarray, view)


def _power_of_two(count: int) -> int:
    return max(_SMALLEST, 1 << (count - 1).bit_length())
