"""Oracles: a model that answers and does not differentiate, asked within a budget.

An oracle lives on the host, outside `jit`: NumPy arrays go in and come out.
"""

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from zojax.blackbox.answers import Answer, Failure, Kind, OracleError, call
from zojax.blackbox.ledger import PURPOSES, Ledger, Purpose, QueryCounts
from zojax.blackbox.limits import Limits, OnFailure, check_limits
from zojax.errors import check_at_least, check_that, is_traced

_Found: TypeAlias = list[tuple[np.ndarray, np.ndarray]]  # places of answered rows, and the answers


class Oracle:
    """What an attack or an explanation asks; built by `score_oracle` and `label_oracle`.

    The rule of counting: every row that is handed to the function counts, once per time it is
    handed over, for the sample it belongs to. A row whose call raises, is abandoned or returns
    nonsense counts, because the service received it; a row that is sent again counts again; equal
    rows count each. Nothing else is ever sent: no padding, no empty batch. A row that its sample's
    budget does not cover is neither sent nor counted, and its answer is NaN (scores) or -1
    (labels). So the counts add up to the rows the function received, and none exceeds the budget.

    Not for several threads at once.

    Args:
      function: of a batch, NumPy float32 (b, ...).
      kind: what it returns.
      num_classes: how many classes there are, None if the first answer shall say.
      limits: how it may be called.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        kind: Kind,
        num_classes: int | None,
        limits: Limits,
    ) -> None:
        check_that("function", function, "callable", callable)
        if num_classes is not None:
            check_at_least("num_classes", num_classes, 2)
        check_limits(limits)
        if kind == "scores" and limits.on_failure == "record" and num_classes is None:
            raise ValueError('on_failure="record" needs num_classes, the columns of the scores')
        self._function = function
        self._kind = kind
        self._num_classes = num_classes
        self._limits = limits
        self._ledger = Ledger(limits.budget)
        self._failures: list[Failure] = []
        self._last_start = -np.inf

    @property
    def kind(self) -> Kind:
        """What the function returns, "scores" or "labels"."""
        return self._kind

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None until a function that returns scores has answered."""
        return self._num_classes

    @property
    def counts(self) -> QueryCounts:
        """Rows sent so far for every sample, by purpose."""
        return self._ledger.counts

    @property
    def exhausted(self) -> np.ndarray:
        """Samples of which a row was not sent because the budget was spent, increasing."""
        return self._ledger.exhausted

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Rows that were sent and never answered, oldest first."""
        return tuple(self._failures)

    def remaining(self, samples: Any) -> np.ndarray:
        """Rows that may still be sent for each sample; 2**63 - 1 without a budget.

        Args:
          samples: sample numbers, (r,).

        Returns:
          int64 (r,).

        Raises:
          ValueError: for samples that are not integers >= 0 of rank 1.
        """
        return self._ledger.remaining(_read_samples(samples))

    def scores(self, x: Any, samples: Any, *, purpose: Purpose = "loss") -> np.ndarray:
        """Asks for the scores of rows.

        Args:
          x: rows, (r, ...), finite; r may be 0, which sends nothing.
          samples: which sample each row belongs to, integers (r,), numbered from 0.
          purpose: "loss" or "check", which are counted separately.

        Returns:
          float32 (r, classes); NaN in rows that were not sent or not answered. No columns while the
          number of classes is not known.

        Raises:
          ValueError: before anything is sent: for rows or samples that are not as described, and
            for an oracle that knows labels only.
          OracleError: if the function fails and failures are not merely recorded.
        """
        if self._kind != "scores":
            raise ValueError("this oracle answers labels only; scores need a score_oracle")
        rows, owners = _read_inputs(x, samples, purpose)

        def fill(found: _Found) -> np.ndarray:
            scores = np.full((owners.size, self._num_classes or 0), np.nan, np.float32)
            for places, values in found:
                scores[places] = values
            return scores

        return self._ask(rows, owners, purpose, fill)

    def labels(self, x: Any, samples: Any, *, purpose: Purpose = "loss") -> np.ndarray:
        """Asks for the labels of rows; where scores are known, the first class of the highest.

        Args:
          x: as in `scores`.
          samples: as in `scores`.
          purpose: as in `scores`.

        Returns:
          int64 (r,); -1 in rows that were not sent or not answered.

        Raises:
          ValueError: before anything is sent: for rows or samples that are not as described.
          OracleError: if the function fails and failures are not merely recorded.
        """
        rows, owners = _read_inputs(x, samples, purpose)

        def fill(found: _Found) -> np.ndarray:
            labels = np.full(owners.size, -1, np.int64)
            for places, values in found:
                labels[places] = values if self._kind == "labels" else values.argmax(axis=1)
            return labels

        return self._ask(rows, owners, purpose, fill)

    def _ask(
        self,
        x: np.ndarray,
        samples: np.ndarray,
        purpose: Purpose,
        fill: Callable[[_Found], np.ndarray],
    ) -> np.ndarray:
        """Sends what the budget covers, and fills the answers in."""
        found: _Found = []
        size = self._limits.batch_size or max(samples.size, 1)
        try:
            for start in range(0, samples.size, size):
                batch = np.arange(start, min(start + size, samples.size))
                # Batch by batch: repeats of the one before have spent budget too.
                batch = batch[self._ledger.admit(samples[batch])]
                if batch.size:
                    self._ask_batch(x, samples, batch, purpose, found)
        except OracleError as error:
            error.answers = fill(found)
            raise
        return fill(found)

    def _ask_batch(
        self,
        x: np.ndarray,
        samples: np.ndarray,
        batch: np.ndarray,
        purpose: Purpose,
        found: _Found,
    ) -> None:
        """Sends one batch, and again those of its rows that get no answer, within the budget."""
        for attempt in range(1, self._limits.retries + 2):
            answer = self._send(x[batch], samples[batch], purpose)
            if answer.values is not None:
                found.append((batch[answer.valid], answer.values[answer.valid]))
            batch = batch[~answer.valid]
            if not batch.size:
                return
            if attempt <= self._limits.retries:
                covered = self._ledger.admit(samples[batch])
                self._give_up(answer, samples[batch[~covered]], attempt)
                batch = batch[covered]
                if not batch.size:
                    return
        self._give_up(answer, samples[batch], attempt)

    def _send(self, batch: np.ndarray, samples: np.ndarray, purpose: Purpose) -> Answer:
        wait = self._last_start + self._limits.min_interval - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._last_start = time.monotonic()
        self._ledger.add(samples, purpose)
        answer = call(self._function, batch, self._kind, self._num_classes, self._limits.timeout)
        if self._kind == "scores" and answer.values is not None:
            self._num_classes = answer.values.shape[1]
        return answer

    def _give_up(self, answer: Answer, samples: np.ndarray, attempts: int) -> None:
        """Records rows as unanswered and, if that is the setting, raises."""
        if not samples.size or answer.kind is None:
            return
        message = answer.message if attempts == 1 else f"{answer.message} (tried {attempts} times)"
        failure = Failure(answer.kind, message, samples.size, samples)
        self._failures.append(failure)
        if self._limits.on_failure == "raise":
            raise OracleError(failure) from answer.error


def score_oracle(
    function: Callable[[np.ndarray], Any],
    *,
    budget: int | None = None,
    batch_size: int | None = None,
    timeout: float | None = None,
    retries: int = 0,
    min_interval: float = 0.0,
    num_classes: int | None = None,
    on_failure: OnFailure = "raise",
) -> Oracle:
    """An oracle around a function that returns scores: logits, log-probabilities, probabilities.

    >>> import numpy as np
    >>> from zojax import blackbox
    >>> oracle = blackbox.score_oracle(lambda x: x @ np.eye(3, dtype=np.float32), budget=2)
    >>> oracle.scores([[0, 1, 0], [2, 0, 0], [0, 0, 3]], samples=[0, 0, 0]).tolist()
    [[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [nan, nan, nan]]
    >>> oracle.counts.loss.tolist(), oracle.exhausted.tolist()
    ([2], [0])

    Args:
      function: NumPy float32 (b, ...) to real numbers (b, classes): anything NumPy reads, a JAX
        array, a torch tensor.
      budget: rows that may be sent per sample, at least 1; None for no bound.
      batch_size: rows per call at most, None for all at once.
      timeout: seconds after which a call is abandoned, None never. Calls then run in a thread of
        their own, where settings that hold per thread (of JAX or torch) must be made anew, and an
        abandoned call may still be running when the next one starts.
      retries: how often rows that got no answer are sent again, budget permitting.
      min_interval: seconds between the starts of two calls at least.
      num_classes: how many columns scores have, at least 2; None lets the first answer say.
      on_failure: "raise" an `OracleError`, or "record" the failure and go on with NaN, which needs
        `num_classes`: the first call may be the one that fails.

    Raises:
      ValueError: for a setting out of range.
    """
    limits = Limits(budget, batch_size, timeout, retries, min_interval, on_failure)
    return Oracle(function, "scores", num_classes, limits)


def label_oracle(
    function: Callable[[np.ndarray], Any],
    *,
    budget: int | None = None,
    batch_size: int | None = None,
    timeout: float | None = None,
    retries: int = 0,
    min_interval: float = 0.0,
    num_classes: int | None = None,
    on_failure: OnFailure = "raise",
) -> Oracle:
    """An oracle around a function that returns decisions only.

    Args:
      function: NumPy float32 (b, ...) to integer labels >= 0, (b,).
      budget: as in `score_oracle`.
      batch_size: as in `score_oracle`.
      timeout: as in `score_oracle`.
      retries: as in `score_oracle`.
      min_interval: as in `score_oracle`.
      num_classes: labels must be below it; None accepts any label >= 0.
      on_failure: "raise" an `OracleError`, or "record" the failure and go on with the label -1.

    Raises:
      ValueError: for a setting out of range.
    """
    limits = Limits(budget, batch_size, timeout, retries, min_interval, on_failure)
    return Oracle(function, "labels", num_classes, limits)


def _read_inputs(x: Any, samples: Any, purpose: Purpose) -> tuple[np.ndarray, np.ndarray]:
    check_that("purpose", purpose, '"loss" or "check"', PURPOSES.count)
    owners = _read_samples(samples)
    if is_traced(x):
        raise ValueError("x is traced: an oracle is asked outside jit, vmap and grad")
    with np.errstate(over="ignore"):
        rows = np.asarray(x).astype(np.float32)
    if rows.ndim < 2 or rows.shape[0] != owners.size:
        raise ValueError(
            f"x must hold one row per entry of samples, shape ({owners.size}, ...), "
            f"got shape {rows.shape}"
        )
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).reshape(owners.size, -1).all(axis=1))
        raise ValueError(f"x must be finite, got NaN or infinity in row {bad[0]}")
    return rows, owners


def _read_samples(samples: Any) -> np.ndarray:
    if is_traced(samples):
        raise ValueError("samples is traced: an oracle is asked outside jit, vmap and grad")
    owners = np.asarray(samples)
    is_integer = np.issubdtype(owners.dtype, np.integer) or owners.size == 0
    if owners.ndim != 1 or not is_integer or owners.min(initial=0) < 0:
        raise ValueError(f"samples must be integers >= 0 of shape (r,), got {samples!r}")
    return owners.astype(np.int64)
