"""Runs an attack on many examples at once: asks the oracle, counts, lets finished samples go."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.attacks.inputs import PATIENCE, ask_labels, read_classes, read_inputs
from zojax.attacks.kernel import Ask, Attack, Goal, distance, is_reached
from zojax.attacks.results import AttackInterrupted, Records, Results
from zojax.blackbox import Oracle, OracleError
from zojax.blackbox.ledger import Purpose
from zojax.errors import check_at_least, check_instance
from zojax.keys import check_key
from zojax.types import PRNGKey, Scalar, State

_SMALLEST = 8  # slots at least, so that the last few samples share one compiled program


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


def run(
    attack: Attack,
    oracle: Oracle,
    x: Any,
    labels: Any,
    key: PRNGKey,
    *,
    targets: Any = None,
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
      targets: classes to be reached, integers (b,), which makes the attack targeted.
      max_steps: steps per sample at most; None for no bound.
      milestones: numbers of queries at which the distortion reached is noted.
      progress: called after every step with the numbers of finished samples and of rows sent.

    Returns:
      `Results`.

    Raises:
      AttackInterrupted: if the oracle raises or the user interrupts; it holds the results so far.
      ValueError: for arguments that do not fit together, before anything is asked.
    """
    inputs, goal = _read(attack, oracle, x, labels, targets)
    check_key(key)
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
        max_steps=max_steps,
        milestones=milestones,
        progress=progress,
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
      max_steps: as in `run`.
      milestones: as in `run`.
      progress: as in `run`.

    Raises:
      AttackInterrupted: as `run`.
    """
    loop = _Run(attack, oracle, x, goal, milestones, reserve)
    try:
        loop.start(samples if first is None else loop.check(first, samples), key)
        while loop.active.samples.size:
            loop.step(max_steps)
            if progress is not None:
                finished = len(samples) - loop.active.samples.size
                progress(finished, loop.records.num_queries())
    except (OracleError, KeyboardInterrupt) as error:
        loop.leave(np.ones(loop.active.samples.size, bool), "interrupted")
        results = loop.records.results()
        unfinished = int(np.sum(results.status[samples] == "interrupted"))
        remark = f"{unfinished} of {len(samples)} samples without a result"
        raise AttackInterrupted(results, remark, error) from error
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
        self.num_silent = np.zeros(len(x), np.int64)

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
        if not samples.size:
            return
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
        answers, was_answered = self._ask(samples, places, view.ask)
        was_asked = view.ask.used[places].any(axis=1)
        slots, view = self.programs.advance(slots, answers)
        self.active = _Active(samples, places, slots, _fetch(view))
        view = self.active.view
        self.records.note(samples, view.found[places], view.distances[places].T)
        self.num_silent[samples[was_asked & ~was_answered]] += 1
        self.num_silent[samples[was_answered]] = 0
        self._leave_done()
        self.leave(self.num_silent[self.active.samples] >= PATIENCE, "oracle_failed")
        self._compact()

    def _ask(
        self, samples: np.ndarray, places: np.ndarray, ask: Ask
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sends what the samples want to know, and nothing else.

        Returns:
          Answers for every slot, (p, q, ...), and whether each sample got any, bool (n,).
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
            if needs_scores:
                values = self.oracle.scores(points, owners, purpose=purpose)
                is_answer = ~np.isnan(values).any(axis=1)
            else:
                values = self.oracle.labels(points, owners, purpose=purpose)
                is_answer = values >= 0
            answers[places[row], column] = values
            was_answered[row[is_answer]] = True
        return answers, was_answered

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
        """Moves the samples to fewer slots once a quarter suffices: each size is compiled anew."""
        samples, places, slots, view = self.active
        size = _power_of_two(samples.size)
        if not samples.size or size > len(view.is_done) // 4:
            return
        index = np.resize(places, size)
        slots = self.programs.take(slots, index)
        view = jax.tree.map(lambda leaf: leaf[index], view)
        self.active = _Active(samples, np.arange(samples.size), slots, view)


def _fetch(view: _View) -> Any:
    return jax.tree.map(np.asarray, view)


def _power_of_two(count: int) -> int:
    return max(_SMALLEST, 1 << (count - 1).bit_length())


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
