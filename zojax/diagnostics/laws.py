"""From the error of an estimate to its cosine."""

import math


def expected_cosine(error: float, num_directions: int) -> float:
    """Mean cosine to the gradient of an estimate with a known relative mean squared error.

    About 1 / sqrt(1 + error); for few directions the cosine itself is random, its square being
    close to a beta variable with n / 2 and n error / 2, of which this is the mean root (exactly so
    for Gaussian, spherical and orthogonal directions, up to O(1 / d)).

    Args:
      error: E|estimate - g|^2 / |g|^2.
      num_directions: n.
    """
    a, b = num_directions / 2, num_directions * max(error, 0.0) / 2
    logs = [math.lgamma(x) for x in (a + 0.5, a + b, a, a + b + 0.5)]
    return math.exp(logs[0] + logs[1] - logs[2] - logs[3])
