"""Compressed sensing without a generator: the lasso in a basis where images are nearly sparse."""

import math
from typing import Literal, get_args

import numpy as np

BasisName = Literal["pixel", "dct"]
BASES: tuple[BasisName, ...] = get_args(BasisName)

_MAX_ITERATIONS = 2_000


def recover(
    basis: BasisName, matrix: np.ndarray, measurements: np.ndarray, penalty: float
) -> np.ndarray:
    """Recovers images x from y = A x by min |A x - y|^2 / (2 m) + alpha |c|_1, x = B c.

    Pixels are kept positive.

    Args:
        basis: B: `pixel` (the identity) or `dct` (two-dimensional cosines, orthonormal).
        matrix: A, (m, n).
        measurements: y, (b, m).
        penalty: alpha as a share of the smallest one at which nothing is recovered of the image.

    Returns:
        Images as vectors, (b, n).
    """
    from sklearn.linear_model import Lasso

    num_pixels = matrix.shape[1]
    inverse = np.eye(num_pixels) if basis == "pixel" else cosines(num_pixels)
    design = np.asfortranarray(matrix @ inverse, dtype=np.float64)
    found = np.empty((len(measurements), num_pixels))
    for row, y in enumerate(measurements.astype(np.float64)):
        largest = np.abs(design.T @ y).max() / len(y)
        model = Lasso(
            alpha=max(penalty * largest, 1e-12),
            fit_intercept=False,
            positive=basis == "pixel",
            max_iter=_MAX_ITERATIONS,
            tol=1e-3,
            warm_start=False,
        )
        model.fit(design, y)
        found[row] = inverse @ model.coef_
    return found


def cosines(num_pixels: int) -> np.ndarray:
    """Returns the inverse two-dimensional DCT of square images as an orthonormal matrix (n, n).

    Args:
        num_pixels: n, a square number.
    """
    side = math.isqrt(num_pixels)
    position, frequency = np.mgrid[:side, :side]
    one = np.cos(np.pi * (2 * position + 1) * frequency / (2 * side)) * np.sqrt(2 / side)
    one[:, 0] /= np.sqrt(2)
    return np.kron(one, one)
