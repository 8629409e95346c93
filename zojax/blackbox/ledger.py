"""Query counts per sample and the budget that bounds them."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Purpose: TypeAlias = Literal["loss", "check"]
"""What a query is for: a value of the loss, or whether the attack has succeeded."""
PURPOSES = ("loss", "check")
UNLIMITED = int(np.iinfo(np.int64).max)


class QueryCounts(NamedTuple):
    """Rows sent so far, entry i for sample i, up to the highest sample asked about.

    Attributes:
      loss: queries for values of the loss, int64 (samples,).
      check: queries for whether the attack has succeeded, int64 (samples,).
    """

    loss: np.ndarray
    check: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Both together, which is what the budget bounds."""
        return self.loss + self.check


class Ledger:
    """Counts the rows sent for every sample and says which may still be sent.

    Args:
      budget: rows per sample, None for no bound.
    """

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._counts = {purpose: np.zeros(0, np.int64) for purpose in PURPOSES}
        self._refused = np.zeros(0, bool)

    @property
    def counts(self) -> QueryCounts:
        """A copy of the counts."""
        return QueryCounts(*(self._counts[purpose].copy() for purpose in PURPOSES))

    @property
    def exhausted(self) -> np.ndarray:
        """Samples of which a row was refused, increasing."""
        return np.flatnonzero(self._refused)

    def remaining(self, samples: np.ndarray) -> np.ndarray:
        """Rows that may still be sent for each of `samples`; `UNLIMITED` without a budget.

        Args:
          samples: sample numbers, int64 (r,).
        """
        if self._budget is None:
            return np.full(samples.shape, UNLIMITED)
        total = self.counts.total
        known = samples < total.size
        spent = np.zeros(samples.shape, np.int64)
        spent[known] = total[samples[known]]
        return self._budget - spent

    def admit(self, samples: np.ndarray) -> np.ndarray:
        """Which rows may be sent: of each sample the first ones, as many as its budget has left.

        A sample of which a row is refused is exhausted from then on.

        Args:
          samples: the sample of each row, int64 (r,).

        Returns:
          A mask, bool (r,).
        """
        self._grow(samples)
        admitted = _rank_within_sample(samples) < self.remaining(samples)
        self._refused[samples[~admitted]] = True
        return admitted

    def add(self, samples: np.ndarray, purpose: Purpose) -> None:
        """Counts rows that are about to be sent.

        Args:
          samples: the sample of each row, int64 (r,).
          purpose: what they are for.
        """
        self._grow(samples)
        np.add.at(self._counts[purpose], samples, 1)

    def _grow(self, samples: np.ndarray) -> None:
        missing = int(samples.max(initial=-1)) + 1 - self._refused.size
        if missing > 0:
            self._refused = np.pad(self._refused, (0, missing))
            for purpose, counts in self._counts.items():
                self._counts[purpose] = np.pad(counts, (0, missing))


def _rank_within_sample(samples: np.ndarray) -> np.ndarray:
    """For each row, how many rows of the same sample stand before it."""
    order = np.argsort(samples, kind="stable")
    grouped = samples[order]
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size) - np.searchsorted(grouped, grouped, side="left")
    return ranks
