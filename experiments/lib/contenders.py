"""The estimators that are compared, each at a given number of queries per step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import zojax

Law = Callable[[int, int, Any], float]


class Setting(NamedTuple):
    """What an estimator is built for.

    Attributes:
        queries: Evaluations per step.
        sigma: Smoothing radius.
        params: Parameters of the right shapes.
        loss: About the loss at the start.
    """

    queries: int
    sigma: Any
    params: Any
    loss: float


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to estimate a gradient.

    Attributes:
        label: For tables.
        build: `setting -> Estimator` that uses `setting.queries` per step, or as close to it as
            it can.
        law: `(d, n, gradient) -> relative mean squared error` on a linear loss, None where no
            closed form is known. For estimators that lose the scale it is the error after the best
            scaling, so that the cosine is about 1 / sqrt(1 + law) for all.
        only_matrices: Whether it is another estimator's twin where parameters are one vector.
        family: "directions", "stencil", "shaping" or "method".
    """

    label: str
    build: Callable[[Setting], zojax.Estimator]
    law: Law | None
    family: str
    only_matrices: bool = False

    def expect(self, params: Any, est: zojax.Estimator, gradient: Any) -> float | None:
        """Returns the relative mean squared error that the law predicts, None without a law."""
        if self.law is None:
            return None
        dimension = sum(leaf.size for leaf in jax.tree.leaves(params))
        return self.law(dimension, est.num_directions(params), gradient)


def _central(directions: Callable[[], zojax.Directions], shaping: Any = zojax.identity) -> Any:
    return lambda at: zojax.finite_difference(
        directions=directions(),
        stencil=zojax.central,
        num_directions=max(1, at.queries // 2),
        sigma=at.sigma,
        shaping=shaping,
    )


def _one_sided(stencil: zojax.Stencil, shaping: Any = zojax.identity) -> Any:
    """Gaussian directions; the queries that `central` spends on pairs go into more directions."""
    return lambda at: zojax.finite_difference(
        stencil=stencil,
        num_directions=max(1, at.queries - int(stencil.has_center)),
        sigma=at.sigma,
        shaping=shaping,
    )


def _value_baseline(at: Setting) -> zojax.Estimator:
    return zojax.value_baseline(_one_sided(zojax.one_point)(at), at.loss)


def _control_variate(at: Setting) -> zojax.Estimator:
    return zojax.control_variate(_central(zojax.gaussian)(at))


def _evolution_strategy(at: Setting) -> zojax.Estimator:
    return zojax.evolution_strategy(num_directions=max(1, at.queries // 2), sigma=at.sigma)


def _augmented_random_search(at: Setting) -> zojax.Estimator:
    number = max(1, at.queries // 2)
    return zojax.augmented_random_search(
        num_directions=number, num_top=max(1, number // 2), sigma=at.sigma
    )


def _pgpe(at: Setting) -> zojax.Estimator:
    return zojax.pgpe(num_directions=max(1, at.queries // 2), sigma=at.sigma)


def _coordinates(at: Setting) -> zojax.Estimator:
    return zojax.coordinate_difference(sigma=at.sigma, num_coordinates=max(1, at.queries // 2))


def _coordinate_subset(at: Setting) -> zojax.Estimator:
    return zojax.sparse_coordinate_difference(
        subset_ratios(at.params, max(1, at.queries // 2)), key=jax.random.key(0), sigma=at.sigma
    )


def subset_ratios(params: Any, number: int) -> Any:
    """Returns fractions of the leaves that add up to exactly `number` coordinates.

    Shared out in proportion to the leaves' sizes; the largest remainders are rounded up.

    Args:
        params: Arrays or their shapes.
        number: Coordinates in all, at most as many as there are.
    """
    leaves, treedef = jax.tree.flatten(params)
    sizes = np.array([leaf.size for leaf in leaves])
    shares = sizes * (number / sizes.sum())
    counts = np.floor(shares).astype(int)
    order = np.argsort(-(shares - counts), kind="stable")
    counts[order[: number - counts.sum()]] += 1
    return jax.tree.unflatten(treedef, [float(c / s) for c, s in zip(counts, sizes, strict=True)])


def _gaussian_law(d: int, n: int, gradient: Any) -> float:
    return (d + 1) / n


def _signs_law(d: int, n: int, gradient: Any) -> float:
    return (d - 1) / n


def _without_replacement_law(d: int, n: int, gradient: Any) -> float:
    return (d - min(n, d)) / n


def _hadamard_law(d: int, n: int, gradient: Any) -> float:
    padded = 2 ** (d - 1).bit_length()
    return (d - 1) / n * (padded - min(n, padded)) / (padded - 1)


def _low_rank_law(d: int, n: int, gradient: Any) -> float:
    """Matrices pay for the product of two normals, in proportion to their share of the gradient."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
    total = sum((leaf**2).sum() for leaf in leaves)
    extra = sum(
        (leaf**2).sum() / total * 2 * (leaf.size // leaf.shape[-1] + leaf.shape[-1] + 1)
        for leaf in leaves
        if leaf.ndim > 1
    )
    return (d + 1 + extra) / n


def _sign_of_difference_law(d: int, n: int, gradient: Any) -> float:
    return (np.pi / 2 * d - 1) / n


def _leave_one_out_law(d: int, n: int, gradient: Any) -> float:
    return (d + 1) / n * n / max(n - 1, 1)


def _student_t_law(d: int, n: int, gradient: Any) -> float:
    return ((d + 6) * (d + 2) / (d + 8) - 1) / n


def low_rank_signs() -> zojax.Directions:
    """Rank-1 directions with Rademacher factors."""
    return zojax.low_rank(1, "rademacher")


CONTENDERS = {
    contender.label: contender
    for contender in (
        Contender("gaussian", _central(zojax.gaussian), _gaussian_law, "directions"),
        Contender("rademacher (spsa)", _central(zojax.rademacher), _signs_law, "directions"),
        Contender("sphere", _central(zojax.sphere), _signs_law, "directions"),
        Contender("coordinate", _central(zojax.coordinate), _signs_law, "directions"),
        Contender("orthogonal", _central(zojax.orthogonal), _without_replacement_law, "directions"),
        Contender("hadamard", _central(zojax.hadamard), _hadamard_law, "directions"),
        Contender("low_rank(1)", _central(zojax.low_rank), _low_rank_law, "directions", True),
        Contender(
            "low_rank(1, rademacher)", _central(low_rank_signs), _signs_law, "directions", True
        ),
        Contender(
            "sparse(0.1)",
            _central(lambda: zojax.sparse(0.1)),
            lambda d, n, gradient: (d + 8) / n,
            "directions",
        ),
        Contender(
            "laplace",
            _central(zojax.laplace),
            lambda d, n, gradient: (2 * d - 1) / n,
            "directions",
        ),
        Contender(
            "student_t(6)", _central(lambda: zojax.student_t(6)), _student_t_law, "directions"
        ),
        Contender("guided(history)", _central(zojax.guided), None, "directions"),
        Contender("forward", _one_sided(zojax.forward), _gaussian_law, "stencil"),
        Contender(
            "one_point, leave_one_out",
            _one_sided(zojax.one_point, zojax.leave_one_out),
            _leave_one_out_law,
            "stencil",
        ),
        Contender("one_point, value_baseline", _value_baseline, _gaussian_law, "stencil"),
        Contender(
            "standardize", _central(zojax.gaussian, zojax.standardize), _gaussian_law, "shaping"
        ),
        Contender("evolution_strategy", _evolution_strategy, None, "shaping"),
        Contender(
            "sign_of_difference",
            _central(zojax.gaussian, zojax.sign_of_difference),
            _sign_of_difference_law,
            "shaping",
        ),
        Contender("augmented_random_search", _augmented_random_search, None, "shaping"),
        Contender("coordinate_difference(n)", _coordinates, _without_replacement_law, "method"),
        Contender(
            "sparse_coordinate_difference", _coordinate_subset, _without_replacement_law, "method"
        ),
        Contender("control_variate", _control_variate, None, "method"),
        Contender("pgpe", _pgpe, _gaussian_law, "method"),
    )
}

BACK_PROPAGATION = "back-propagation"


def contenders_for(params: Any) -> list[Contender]:
    """Returns the estimators that differ from one another on these parameters.

    Args:
        params: Arrays or their shapes; without a matrix, low-rank directions are full-rank ones.
    """
    has_matrix = any(len(leaf.shape) > 1 for leaf in jax.tree.leaves(params))
    return [c for c in CONTENDERS.values() if has_matrix or not c.only_matrices]
