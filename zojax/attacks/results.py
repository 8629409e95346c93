"""What an attack on a set of examples found and cost, kept so that nothing is ever lost."""

from typing import Any, NamedTuple

import numpy as np

from zojax.blackbox import Oracle


class Results(NamedTuple):
    """One entry per sample, NumPy arrays. Queries are rows sent to the oracle during this run.

    Attributes:
      adversarial: the best adversarial input found, float32 (b, ...); the input itself where there
        is none.
      success: whether the attack found one, bool (b,); not so for "already".
      status: str (b,), one of
        "success": an adversarial input was found;
        "failed": the attack ended, or had its `max_steps`, without one;
        "budget": the next step would have cost more than what is left of the budget;
        "already": the input itself fulfils the goal, which cost one query;
        "oracle_failed": no answer at all in three consecutive steps;
        "interrupted": only within `AttackInterrupted`: neither found nor finished.
      finished: whether the attack was over, bool (b,); False only within `AttackInterrupted`, there
        also for samples with a success that was still being improved.
      loss_queries: int64 (b,).
      check_queries: those that only checked for success, the one for the input included.
      queries_to_success: all queries up to the end of the step that found the first adversarial
        input, int64 (b,); -1 without.
      l2: distance of `adversarial` from the input, float64 (b,); 0 for "already", NaN without.
      linf: likewise.
      l2_at: float64 (milestones, b): `l2` when that many queries had been spent, NaN before the
        first adversarial input.
      linf_at: likewise.
    """

    adversarial: np.ndarray
    success: np.ndarray
    status: np.ndarray
    finished: np.ndarray
    loss_queries: np.ndarray
    check_queries: np.ndarray
    queries_to_success: np.ndarray
    l2: np.ndarray
    linf: np.ndarray
    l2_at: np.ndarray
    linf_at: np.ndarray

    @property
    def queries(self) -> np.ndarray:
        """All queries of each sample, int64 (b,)."""
        return self.loss_queries + self.check_queries


class AttackInterrupted(RuntimeError):  # noqa: N818 - it says what happened, like KeyboardInterrupt
    """The oracle raised, or the user interrupted; its cause is chained.

    Attributes:
      results: what had been found until then. Of `run`: samples that were still attacked and have
        nothing have the status "interrupted". Of a universal attack: the best perturbation so far.
    """

    def __init__(self, results: Any, remark: str, cause: BaseException) -> None:
        super().__init__(
            f"the attack was interrupted, {remark}: "
            f"{str(cause) or type(cause).__name__} (what was found is in .results)"
        )
        self.results = results


def rows_sent(oracle: Oracle, size: int) -> np.ndarray:
    """Rows sent for each of the first samples so far, int64 (2, size): for losses, for checks.

    Args:
      oracle: that counts; it may not have heard of all samples yet.
      size: how many samples.
    """
    counts = np.zeros((2, size), np.int64)
    for row, sent in zip(counts, oracle.counts, strict=True):
        known = sent[:size]
        row[: len(known)] = known
    return counts


class Records:
    """The results under construction.

    Args:
      x: the inputs, float32 (b, ...).
      oracle: that counts.
      milestones: numbers of queries at which distortions are noted.
    """

    def __init__(self, x: np.ndarray, oracle: Oracle, milestones: tuple[int, ...]) -> None:
        self._x = x
        self._oracle = oracle
        self._milestones = np.asarray(milestones, np.int64).reshape(-1, 1)
        self._before = self._counts()
        size = len(x)
        self.adversarial = x.copy()
        self.status = np.full(size, "interrupted", dtype="<U13")
        self.found = np.zeros(size, bool)
        self._finished = np.zeros(size, bool)
        self._to_success = np.full(size, -1, np.int64)
        self._distances = np.full((2, size), np.nan)
        self._distances_at = np.full((2, len(milestones), size), np.nan)

    def _counts(self) -> np.ndarray:
        return rows_sent(self._oracle, len(self._x))

    def note(self, samples: np.ndarray, found: np.ndarray, distances: np.ndarray) -> None:
        """Notes what is known after a step.

        Args:
          samples: that took the step, int (n,).
          found: whether there is an adversarial input, bool (n,).
          distances: of the best one, l2 and linf, (2, n).
        """
        total = (self._counts() - self._before).sum(axis=0)[samples]
        is_first = found & ~self.found[samples]
        self._to_success[samples[is_first]] = total[is_first]
        self.found[samples] = found
        self._distances[:, samples] = np.where(found, distances, np.nan)
        reached = self._milestones >= total
        kept = self._distances_at[:, :, samples]
        self._distances_at[:, :, samples] = np.where(
            reached, self._distances[:, None, samples], kept
        )

    def finish(self, samples: np.ndarray, status: str, best: np.ndarray | None = None) -> None:
        """Ends samples; those that have an adversarial input end in success, whatever the reason.

        Args:
          samples: which, int (n,).
          status: why, for those without.
          best: their adversarial inputs where found, (n, ...); None if none can have been found.
        """
        self.status[samples] = status
        self._finished[samples] = status != "interrupted"
        if best is not None:
            found = self.found[samples]
            self.status[samples[found]] = "success"
            self.adversarial[samples[found]] = best[found]

    def finish_already(self, samples: np.ndarray) -> None:
        """Ends samples whose input fulfils the goal by itself.

        Args:
          samples: which, int (n,).
        """
        self.status[samples] = "already"
        self._finished[samples] = True
        self._distances[:, samples] = 0
        self._distances_at[:, :, samples] = 0

    def num_queries(self) -> int:
        """Rows sent during this run, for all samples together."""
        return int((self._counts() - self._before).sum())

    def results(self) -> Results:
        """What is known so far."""
        loss, check = self._counts() - self._before
        return Results(
            adversarial=self.adversarial.copy(),
            success=self.status == "success",
            status=self.status.copy(),
            finished=self._finished.copy(),
            loss_queries=loss,
            check_queries=check,
            queries_to_success=self._to_success.copy(),
            l2=self._distances[0].copy(),
            linf=self._distances[1].copy(),
            l2_at=self._distances_at[0].copy(),
            linf_at=self._distances_at[1].copy(),
        )
