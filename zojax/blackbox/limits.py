"""How often, how fast and how long a function may be called."""

from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from zojax.errors import check_at_least, check_that

OnFailure: TypeAlias = Literal["raise", "record"]
"""Whether a failure raises `OracleError`, or is only listed and leaves its rows unanswered."""


class Limits(NamedTuple):
    """How a function may be called; see `score_oracle`.

    Attributes:
      budget: rows per sample.
      batch_size: rows per call.
      timeout: seconds per call.
      retries: further attempts for rows that got no answer.
      min_interval: seconds between the starts of two calls.
      on_failure: what happens to rows that never got an answer.
    """

    budget: int | None
    batch_size: int | None
    timeout: float | None
    retries: int
    min_interval: float
    on_failure: OnFailure


def check_limits(limits: Limits) -> None:
    """Raises unless every limit is in its range.

    Args:
      limits: what to check.

    Raises:
      ValueError: if one is not.
    """
    for name, value in (("budget", limits.budget), ("batch_size", limits.batch_size)):
        if value is not None:
            check_at_least(name, value, 1)
    check_at_least("retries", limits.retries, 0)
    if limits.timeout is not None:
        check_that("timeout", limits.timeout, "in (0, inf)", lambda s: 0 < s < np.inf)
    check_that("min_interval", limits.min_interval, "in [0, inf)", lambda s: 0 <= s < np.inf)
    check_that("on_failure", limits.on_failure, '"raise" or "record"', get_args(OnFailure).count)
