"""Explanations of a batch of decisions: what changed, into which class, at what cost."""

from typing import NamedTuple

import numpy as np

_VISIBLE = 1 / 510  # half a grey level


class Explanations(NamedTuple):
    """One entry per sample, NumPy arrays. Queries are rows sent to the oracle during this run.

    Attributes:
      change: what is added (negatives) or kept (positives), float32 (b, ...); 0 without success.
      shown: what the model was shown, float32 (b, ...): x + change for a negative, the change
        itself for a positive; without success x, or the blank input.
      class_before: the model's class of x, int64 (b,); -1 without an answer.
      class_after: its class of `shown`, asked again at the end; -1 without success or an answer.
      success: bool (b,); not so for "already".
      status: str (b,), one of
        "success": an explanation was found;
        "failed": the search ended without one;
        "budget": the next step would have cost more than what is left of the budget;
        "already": nothing to search: the class of x is not the one given in `labels`, or (for
          positives) a blank input has the class as well, or (for latents) what the generator makes
          of x has another class;
        "empty": for positives, x is blank: it has nothing that could be kept;
        "oracle_failed": no answer at all in three consecutive steps;
        "interrupted": only within `AttackInterrupted`: neither found nor finished.
      l0: entries of `change` larger than half a grey level (1/510), float64 (b,); as l1 and l2 NaN
        without success.
      l1: sum of its magnitudes.
      l2: its length.
      loss_queries: int64 (b,).
      check_queries: those for classes and for success.
    """

    change: np.ndarray
    shown: np.ndarray
    class_before: np.ndarray
    class_after: np.ndarray
    success: np.ndarray
    status: np.ndarray
    l0: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    loss_queries: np.ndarray
    check_queries: np.ndarray

    @property
    def queries(self) -> np.ndarray:
        """All queries of each sample, int64 (b,)."""
        return self.loss_queries + self.check_queries


def norms(change: np.ndarray, success: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l0, l1 and l2 of each change, NaN without success.

    Args:
      change: (b, ...).
      success: bool (b,).
    """
    sizes = np.abs(change.reshape(len(change), change[:1].size).astype(np.float64))
    found = ((sizes > _VISIBLE).sum(axis=1), sizes.sum(axis=1), np.sqrt((sizes**2).sum(axis=1)))
    l0, l1, l2 = (np.where(success, values, np.nan) for values in found)
    return l0, l1, l2
