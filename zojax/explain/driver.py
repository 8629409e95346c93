"""Explains many decisions at once: asks for them, searches, and asks again about what it found."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zojax.attacks.inputs import ask_labels, read_classes, read_inputs
from zojax.attacks.kernel import Goal
from zojax.attacks.pursuit import pursue
from zojax.attacks.results import AttackInterrupted, Results, rows_sent
from zojax.blackbox import Oracle, OracleError
from zojax.errors import check_at_least, check_instance
from zojax.explain.results import Explanations, norms
from zojax.explain.solver import Explainer
from zojax.keys import check_key
from zojax.types import PRNGKey


def run(
    explainer: Explainer,
    oracle: Oracle,
    x: Any,
    key: PRNGKey,
    *,
    labels: Any = None,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanations:
    """Explains the model's decision about every input.

    Each input is first classified, one query; the decision that is explained is the model's own.
    Then the inputs take steps together, as in `zojax.attacks.run`: a sample leaves when its search
    is over, or when the next step would cost more than the budget leaves it, less one query that is
    kept for the end: the class of what was found is asked for once more. Entry i of `x` is sample i
    of the oracle; build a new one for each run. What a sample does depends on `key` and its place
    in `x`, not on the others.

    >>> import jax
    >>> import numpy as np
    >>> from zojax import blackbox, explain
    >>> def model(x):  # class 0 while the first entry is below a half
    ...     return np.stack([10 * (0.5 - x[:, 0]), np.zeros(len(x))], axis=1)
    >>> oracle = blackbox.score_oracle(model)
    >>> negative = explain.pertinent_negative(num_steps=30, num_searches=2)
    >>> found = explain.run(negative, oracle, [[0.2, 0.9]], jax.random.key(0))
    >>> found.class_before.tolist(), found.class_after.tolist(), found.l0.tolist()
    ([0], [1], [1.0])
    >>> print(found.change.round(1))
    [[0.4 0. ]]

    Args:
      explainer: e.g. `zojax.explain.pertinent_negative()`; compiled once per object and shape, so
        keep it.
      oracle: made by `zojax.blackbox.score_oracle`.
      x: inputs, (b, ...), within [0, 1]; b may be 0.
      key: typed key of shape ().
      labels: classes whose inputs alone are explained, integers (b,): where the model decides
        otherwise, that is all. None explains every decision.
      max_steps: steps per sample at most; None for no bound.
      progress: called after every step with the numbers of finished samples and of rows sent.

    Returns:
      `Explanations`.

    Raises:
      AttackInterrupted: if the oracle raises or the user interrupts; it holds what was found.
      ValueError: for arguments that do not fit together, before anything is asked; and for an
        oracle of labels only: where a small change does not change the answer, values show the way.
    """
    check_instance("explainer", explainer, Explainer, "e.g. zojax.explain.pertinent_negative()")
    check_instance("oracle", oracle, Oracle, "made by zojax.blackbox.score_oracle")
    if oracle.kind == "labels":
        raise ValueError(
            f"a {explainer.attack.name} needs scores, but this oracle answers labels only: they do "
            "not say which small change brings the class nearer to another one"
        )
    inputs = read_inputs(x)
    given = None if labels is None else read_classes("labels", labels, oracle, len(inputs))
    check_key(key)
    if max_steps is not None:
        check_at_least("max_steps", max_steps, 1)
    return _Run(explainer, oracle, inputs).finish(given, key, max_steps, progress)


class _Run:
    """The inputs, and what is known about them."""

    def __init__(self, explainer: Explainer, oracle: Oracle, x: np.ndarray) -> None:
        self.explainer = explainer
        self.oracle = oracle
        self.x = x
        self.status = np.full(len(x), "interrupted", dtype="<U13")
        self.before = np.full(len(x), -1, np.int64)
        self.after = np.full(len(x), -1, np.int64)
        self.results: Results | None = None
        self.counted = self._counts()

    def finish(
        self,
        given: np.ndarray | None,
        key: PRNGKey,
        max_steps: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Explanations:
        """Does everything; hands over what there is when the oracle or the user ends it."""
        try:
            samples = self.classify(given)
            self.results = self.search(samples, key, max_steps, progress)
            self.verify(self.results)
        except (AttackInterrupted, OracleError, KeyboardInterrupt) as error:
            cause: BaseException = error
            if isinstance(error, AttackInterrupted):
                self.results = error.results
                cause = error.__cause__ or error
            found = self.explanations()
            unfinished = int(np.sum(found.status == "interrupted"))
            remark = f"{unfinished} of {len(self.x)} samples without a result"
            raise AttackInterrupted(found, remark, cause) from cause
        return self.explanations()

    def classify(self, given: np.ndarray | None) -> np.ndarray:
        """Asks for the model's decisions; returns the samples to explain, increasing."""
        everybody = np.arange(len(self.x))
        self.before, is_covered = ask_labels(self.oracle, self.x, everybody)
        self.status[~is_covered] = "budget"
        self.status[is_covered & (self.before < 0)] = "oracle_failed"
        if given is not None:
            self.status[(self.before >= 0) & (self.before != given)] = "already"
        if self.explainer.keeps:
            is_blank = ~self.x.reshape(len(self.x), self.x[:1].size).any(axis=1)
            self.status[is_blank & (self.status == "interrupted")] = "empty"
        return np.flatnonzero(self.status == "interrupted")

    def search(
        self,
        samples: np.ndarray,
        key: PRNGKey,
        max_steps: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Results:
        """Searches for explanations."""
        first = self.explainer.first
        points = None
        if first is not None and len(self.x):
            points = np.asarray(jax.jit(jax.vmap(first))(self.x))
        goal = Goal(self.before.astype(np.int32), np.full(len(self.x), self.explainer.keeps))
        return pursue(
            self.explainer.attack,
            self.oracle,
            self.x,
            goal,
            key,
            samples=samples,
            first=points,
            reserve=1,
            max_steps=max_steps,
            progress=progress,
        )

    def verify(self, results: Results) -> None:
        """Asks for the classes of what was found."""
        found = np.flatnonzero(results.success)
        self.after[found], _ = ask_labels(self.oracle, results.adversarial, found)

    def explanations(self) -> Explanations:
        """What is known so far."""
        keeps = self.explainer.keeps
        shown = np.zeros_like(self.x) if keeps else self.x.copy()
        success = np.zeros(len(self.x), bool)
        status = self.status.copy()
        if self.results is not None:
            success = self.results.success
            shown[success] = self.results.adversarial[success]
            is_open = status == "interrupted"
            status[is_open] = self.results.status[is_open]
        change = shown if keeps else shown - self.x
        l0, l1, l2 = norms(change, success)
        loss, check = self._counts() - self.counted
        return Explanations(
            change=change,
            shown=shown,
            class_before=self.before,
            class_after=self.after,
            success=success,
            status=status,
            l0=l0,
            l1=l1,
            l2=l2,
            loss_queries=loss,
            check_queries=check,
        )

    def _counts(self) -> np.ndarray:
        return rows_sent(self.oracle, len(self.x))
