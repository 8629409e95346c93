"""The table of a diagnosis."""

import math
from typing import NamedTuple

from zojax.types import Estimator, Params


class Diagnosis(NamedTuple):
    """What `diagnose` found; printing it shows the table. Unknown numbers are NaN.

    Attributes:
      expected_cosine: of one estimate to the gradient, by the law of the directions on a linear
        loss.
      measured_cosine: mean over the estimates of the cosine to `jax.grad`.
      cosine_error: standard error of that mean.
      split_half_cosine: cosine of one estimate to their mean direction that the agreement of two
        halves of the estimates implies.
      signal_to_noise: of the differences, mean over the estimates; see `EstimateInfo`.
      sigma: smoothing radius in parameter units.
      sigma_floor: below it rounding or noise is over 10 % of the differences; 0 if not found.
      sigma_ceiling: above it curvature is; inf if not found.
      noise: standard deviation of one estimate (its whole vector) over the length of the gradient.
      bias: length of what averaging does not remove over the length of the gradient (of what is
        not along it, where the scale is not preserved).
      moved_fraction: of the weights that get an update, those whose update exceeds half an ulp.
      queries_per_second: loss evaluations per second, without compilation.
      sample_forwards_per_second: examples per second.
      rows: the table, `(name, value, remark)`.
      warnings: one sentence per fault, with what to change.
    """

    expected_cosine: float
    measured_cosine: float
    cosine_error: float
    split_half_cosine: float
    signal_to_noise: float
    sigma: float
    sigma_floor: float
    sigma_ceiling: float
    noise: float
    bias: float
    moved_fraction: float
    queries_per_second: float
    sample_forwards_per_second: float
    rows: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """The table, then the warnings."""
        widths = [max(len(row[i]) for row in self.rows) for i in (0, 1)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in self.rows]
        return "\n".join([*lines, *(f"WARNING: {sentence}" for sentence in self.warnings)])


def make_rows(
    found: Diagnosis, est: Estimator, params: Params, count: int
) -> tuple[tuple[str, str, str], ...]:
    """Returns the rows of the table: name, value, remark.

    Args:
      found: the numbers.
      est: the estimator.
      params: the parameters.
      count: number of estimates.
    """
    low, high, sigma = found.sigma_floor, found.sigma_ceiling, found.sigma
    where = "below it" if sigma < low else "above it" if sigma > high else "inside"
    window = f"{show(low)} to {show(high)}", f"{show(sigma)} is {where}"
    if math.isnan(low):
        window = "-", "difference quotients settle nowhere"
    compared = "to jax.grad" if not math.isnan(found.measured_cosine) else "no gradient to compare"
    rows = [
        (est.name, f"sigma {show(sigma)}", f"{est.num_queries(params)} queries an estimate"),
        (
            "cosine, expected",
            show(found.expected_cosine),
            "no law for it" if math.isnan(found.expected_cosine) else "on a linear loss",
        ),
        (
            "cosine, measured",
            show(found.measured_cosine, found.cosine_error),
            f"{compared}, {count} estimates",
        ),
        ("cosine, split half", show(found.split_half_cosine), "to the estimates' own mean"),
        ("signal to noise", show(found.signal_to_noise), "difference over rounding; 10 or more"),
        ("usable sigma", *window),
        ("noise", show(found.noise), "of one estimate, over |grad|; mean of N: / sqrt(N)"),
        ("bias", show(found.bias), "what averaging leaves, over |grad|"),
        ("weights that move", show(found.moved_fraction), "update over half an ulp, plain steps"),
        ("queries/s", show(found.queries_per_second), ""),
        ("sample-forwards/s", show(found.sample_forwards_per_second), ""),
    ]
    return tuple(rows)


def show(value: float, error: float | None = None) -> str:
    """Returns a number to three digits, "-" where it is not known.

    Args:
      value: the number.
      error: its standard error, shown if given.
    """
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if error is None else f"{value:.3g} +- {error:.1g}"
