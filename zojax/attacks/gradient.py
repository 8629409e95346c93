"""Attacks within a ball that follow an estimated gradient: NES, ZO-signSGD and ZO-AdaMM."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax import estimation
from zojax.attacks.kernel import Ask, Attack, Goal, Norm, choose, margin, project
from zojax.attacks.latent import Latent, perturbed, pixels
from zojax.directions import gaussian
from zojax.errors import check_at_least, check_positive, check_that
from zojax.estimators import finite_difference
from zojax.stencils import central, forward
from zojax.transforms import scale_by_adamm
from zojax.types import Estimator, PRNGKey, Scalar, State

_BISECTIONS = 30


class GradientState(NamedTuple):
    """State of a gradient attack on one example.

    Attributes:
      x: the input that is attacked.
      goal: what counts as success.
      key: of the attack; estimate t draws its directions from `fold_in(key, t)`.
      z: latent variable of the iterate; no longer moves once the attack has succeeded.
      optimizer: state of the optax transformation.
      count: estimates asked for so far, int32 ().
      is_checking: whether the iterate is asked about, or the points around it, bool ().
      margin: of the iterate, NaN while it is not known, ().
      found: bool ().
    """

    x: chex.Array
    goal: Goal
    key: PRNGKey
    z: chex.Array
    optimizer: State
    count: chex.Array
    is_checking: Scalar
    margin: Scalar
    found: Scalar


def nes(
    epsilon: float,
    norm: Norm = "linf",
    *,
    num_pairs: int = 10,
    sigma: float = 0.1,
    learning_rate: float | None = None,
    latent: Latent = pixels,
) -> Attack:
    """NES: antithetic Gaussian differences, steps of fixed length, projected onto the ball.

    The step is that of the steepest descent of the margin in the norm of the ball: the sign of the
    estimate (linf), or its direction (l2). Points of an estimate are clipped to [0, 1], which on a
    linear model scales the estimate of a pixel at the boundary by one half and turns no sign.

    Queries per step: 2 `num_pairs`, and one check of the new iterate.

    Args:
      epsilon: radius of the ball, > 0.
      norm: "linf" or "l2".
      num_pairs: antithetic pairs per estimate, at least 1 (published: 10 for MNIST, 20 for
        CIFAR, 50 for ImageNet).
      sigma: standard deviation of the perturbations, > 0 (published: .1 for MNIST and ImageNet,
        .01 for CIFAR).
      learning_rate: length of a step in the norm of the ball, > 0. None takes those published for
        MNIST: .1 (linf, epsilon .3), 1 (l2, epsilon 3).
      latent: where to search, `pixels` or `upsampled(...)`.

    Raises:
      ValueError: for an argument out of range.

    Source: Ilyas et al. 2018, arXiv 1804.08598; constants of Al-Dujaili and O'Reilly 2020, arXiv
    1902.06894.
    """
    rate = _learning_rate(learning_rate, norm, linf=0.1, l2=1.0)
    check_at_least("num_pairs", num_pairs, 1)
    est = finite_difference(
        directions=gaussian(), stencil=central, num_directions=num_pairs, sigma=sigma
    )
    step = _signs(rate) if norm == "linf" else _unit_vector(rate)
    return _gradient_attack("nes", epsilon, norm, est, step, latent)


def zo_sign_sgd(
    epsilon: float,
    norm: Norm = "linf",
    *,
    num_directions: int = 10,
    sigma: float = 0.1,
    learning_rate: float | None = None,
    latent: Latent = pixels,
) -> Attack:
    """ZO-signSGD: Gaussian forward differences, the sign of the estimate, projected onto the ball.

    The check of an iterate is also the centre of the differences around it.

    Queries per step: `num_directions`, and one check of the new iterate; the first step needs a
    check of the input itself.

    Args:
      epsilon: radius of the ball, > 0.
      norm: "linf" or "l2".
      num_directions: directions per estimate, at least 1 (published: 10 for MNIST).
      sigma: standard deviation of the perturbations, > 0 (published: .1 for MNIST).
      learning_rate: length of a step in the norm of the ball, > 0. None takes .1 (linf, published
        for MNIST with epsilon .3) or .3 (l2, ours).
      latent: where to search, `pixels` or `upsampled(...)`.

    Raises:
      ValueError: for an argument out of range.

    Source: Liu et al. 2019 (signSGD via zeroth-order oracle, ICLR); constants of Al-Dujaili and
    O'Reilly 2020, arXiv 1902.06894.
    """
    rate = _learning_rate(learning_rate, norm, linf=0.1, l2=0.3)
    check_at_least("num_directions", num_directions, 1)
    est = finite_difference(
        directions=gaussian(), stencil=forward, num_directions=num_directions, sigma=sigma
    )
    step = _signs(rate) if norm == "linf" else optax.chain(_signs(1.0), _length(rate))
    return _gradient_attack("zo_sign_sgd", epsilon, norm, est, step, latent)


def zo_adamm(
    epsilon: float,
    norm: Norm = "linf",
    *,
    num_directions: int = 10,
    sigma: float = 0.1,
    learning_rate: float | None = None,
    b1: float = 0.9,
    b2: float = 0.3,
    latent: Latent = pixels,
) -> Attack:
    """ZO-AdaMM: adaptive moments, steps `learning_rate` / sqrt(t), projected in their own metric.

    The projection is the nearest point of the ball in the norm weighted by sqrt(v_max), as the
    method's convergence needs; for a linf ball that is a clip, and with `upsampled` in l2 only a
    point of the ball near it. The check of an iterate is also the
    centre of the forward differences around it. sigma and the step are ours, for a ball: the
    published attack (sigma 1e-3, rate 1e-3) has none and weighs the distortion instead.

    Queries per step: `num_directions`, and one check of the new iterate; the first step needs a
    check of the input itself.

    Args:
      epsilon: radius of the ball, > 0.
      norm: "linf" or "l2".
      num_directions: Gaussian directions per estimate, at least 1 (published: 10).
      sigma: standard deviation of the perturbations, > 0.
      learning_rate: of the first step, > 0. None takes 1 (linf) or .3 (l2).
      b1: decay of the first moment, in [0, 1) (published: .9).
      b2: decay of the second moment, in [0, 1) (published: .3).
      latent: where to search, `pixels` or `upsampled(...)`.

    Raises:
      ValueError: for an argument out of range.

    Source: Chen et al. 2019 (ZO-AdaMM), arXiv 1910.06513.
    """
    rate = _learning_rate(learning_rate, norm, linf=1.0, l2=0.3)
    check_at_least("num_directions", num_directions, 1)
    est = finite_difference(
        directions=gaussian(), stencil=forward, num_directions=num_directions, sigma=sigma
    )
    step = optax.chain(scale_by_adamm(b1, b2), optax.scale_by_schedule(decaying(rate)))
    return _gradient_attack(
        "zo_adamm", epsilon, norm, est, step, latent, lambda state: jnp.sqrt(state[0].largest)
    )


def decaying(learning_rate: float) -> Callable[[chex.Array], chex.Array]:
    """The schedule -learning_rate / sqrt(t), t = 1, 2, ..., of ZO-AdaMM.

    Args:
      learning_rate: of the first step.
    """
    return lambda count: -learning_rate / jnp.sqrt(jnp.asarray(count + 1, jnp.float32))


def _gradient_attack(
    name: str,
    epsilon: float,
    norm: Norm,
    est: Estimator,
    step: optax.GradientTransformation,
    latent: Latent,
    metric: Callable[[State], chex.Array] | None = None,
) -> Attack:
    """What the attacks share: check the iterate, ask around it, step, project, and again."""
    check_positive("epsilon", epsilon)
    check_that("norm", norm, '"linf" or "l2"', lambda x: x in ("linf", "l2"))
    has_center = est.stencil.has_center

    def iterate(state: GradientState) -> chex.Array:
        moved = state.x + latent.perturbation(state.z, state.x)
        return project(moved, state.x, epsilon, norm)

    def init(x: chex.Array, goal: Goal, key: PRNGKey) -> GradientState:
        z = latent.zeros(x)
        return GradientState(
            x=x,
            goal=goal,
            key=key,
            z=z,
            optimizer=step.init(z),
            count=jnp.zeros((), jnp.int32),
            # The input is known to fail; only its margin, as a centre, is worth a query.
            is_checking=jnp.asarray(has_center),
            margin=jnp.full((), jnp.nan, jnp.float32),
            found=jnp.zeros((), bool),
        )

    def ask(state: GradientState) -> Ask:
        key = jax.random.fold_in(state.key, state.count)
        around = estimation.ask(est, state.z, key, ())[int(has_center) :]
        images = jax.vmap(lambda z: perturbed(latent, z, state.x))(around)
        points = jnp.concatenate([iterate(state)[None], images])
        is_check = jnp.arange(len(points)) == 0
        return Ask(points, used=is_check == state.is_checking, is_check=is_check)

    def check(state: GradientState, value: chex.Array) -> GradientState:
        # A centre that is not known is asked for again.
        again = ~jnp.isfinite(value) & has_center
        return state._replace(is_checking=again, margin=value, found=value < 0)

    def move(state: GradientState, values: chex.Array) -> GradientState:
        key = jax.random.fold_in(state.key, state.count)
        values = jnp.append(state.margin, values) if has_center else values
        estimate, _ = estimation.tell(est, state.z, key, (), values)
        updates, optimizer = step.update(estimate.grad, state.optimizer, state.z)
        weights = None if metric is None else metric(optimizer)
        z = _confine(state.z + updates, weights, state.x, latent, epsilon, norm)
        # Without a usable answer nothing moves, and other directions are asked about.
        moved = state._replace(z=z, optimizer=optimizer, is_checking=jnp.ones((), bool))
        is_known = jnp.any(estimate.grad != 0)
        return choose(is_known, moved, state)._replace(count=state.count + 1)

    def tell(state: GradientState, answers: chex.Array) -> GradientState:
        values = margin(answers, state.goal)
        new = choose(state.is_checking, check(state, values[0]), move(state, values[1:]))
        return choose(state.found, state, new)

    def best(state: GradientState) -> tuple[chex.Array, Scalar]:
        return iterate(state), state.found

    return Attack(name, "scores", init, ask, tell, best, lambda state: state.found)


def _confine(
    z: chex.Array,
    weights: chex.Array | None,
    x: chex.Array,
    latent: Latent,
    epsilon: float,
    norm: Norm,
) -> chex.Array:
    """Projects a latent variable so that its perturbation is in the ball, in a diagonal metric."""
    low, high = latent.limits(x)
    if norm == "linf":  # bilinear interpolation does not exceed what it interpolates
        return jnp.clip(z, jnp.maximum(low, -epsilon), jnp.minimum(high, epsilon))

    def length(z: chex.Array) -> chex.Array:
        return jnp.sqrt(jnp.sum(latent.perturbation(z, x) ** 2))

    if weights is None:
        return jnp.clip(z * jnp.minimum(1.0, epsilon / jnp.maximum(length(z), 1e-12)), low, high)

    def shrunk(multiplier: chex.Array) -> chex.Array:
        return jnp.clip(z * weights / (weights + multiplier), low, high)

    def halve(_: Any, bounds: tuple[chex.Array, chex.Array]) -> tuple[chex.Array, chex.Array]:
        middle = 0.5 * (bounds[0] + bounds[1])
        is_short = length(shrunk(middle)) <= epsilon
        return jnp.where(is_short, bounds[0], middle), jnp.where(is_short, middle, bounds[1])

    # With this multiplier the perturbation is short enough: |w z / (w + m)| <= |w z| / m.
    longest = length(z * weights) / epsilon
    _, multiplier = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(longest), longest))
    clipped = jnp.clip(z, low, high)
    return jnp.where(length(clipped) <= epsilon, clipped, shrunk(multiplier))


def _learning_rate(learning_rate: float | None, norm: Norm, *, linf: float, l2: float) -> float:
    """The one that was given, or the default for the norm."""
    if learning_rate is None:
        return linf if norm == "linf" else l2
    check_positive("learning_rate", learning_rate)
    return learning_rate


def _signs(rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sign(), optax.scale(-rate))


def _length(rate: float) -> optax.GradientTransformation:
    """Scales to a length; nothing stays nothing."""

    def rescale(z: chex.Array) -> chex.Array:
        norm = jnp.sqrt(jnp.sum(z**2))
        return z * (rate / jnp.where(norm > 0, norm, 1))

    return optax.stateless(lambda updates, params: jax.tree.map(rescale, updates))


def _unit_vector(rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.scale(-1.0), _length(rate))
