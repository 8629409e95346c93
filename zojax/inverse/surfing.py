"""Surfing: descend on the surface of a network as it was while it learnt, oldest first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from zojax import trees
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.inverse.descent import Descended, Descent, check_descent, descend
from zojax.inverse.snapshots import num_snapshots
from zojax.keys import check_key
from zojax.types import LossFn, Params, PRNGKey, Scalar


class Neighbourhood(NamedTuple):
    """Stay close to where the surface before ended: the variant that the theory is about.

    From the last point and from `num_candidates - 1` points drawn uniformly from the ball around
    it, projected descent finds a minimum within the ball; the lowest is taken. The published form
    enumerates the linear pieces of a ReLU network that the ball meets; drawing points finds the
    larger of them, and asks nothing of the network.

    Attributes:
      radius: of the l2 ball, > 0.
      num_candidates: starts per snapshot, at least 1.
    """

    radius: float
    num_candidates: int = 1


class Surfed(NamedTuple):
    """What `surf` and `direct` found.

    Attributes:
      x: the solution, a pytree like the start.
      value: the loss there on the last snapshot, shape ().
      path: x after each snapshot, leading axis T + 1, without the polish.
      values: the loss of each snapshot at the end of its descent, shape (T + 1,).
      num_steps: gradient steps made, shape ().
      num_queries: loss evaluations made, shape (): one per exact gradient, those of the estimator
        otherwise, one per snapshot for `values`, and those of the options.
    """

    x: Params
    value: Scalar
    path: Params
    values: chex.Array
    num_steps: Scalar
    num_queries: Scalar


def surf(
    loss_fn: LossFn,
    snapshots: Params,
    x0: Params,
    key: PRNGKey,
    descent: Descent,
    *,
    args: tuple[Any, ...] = (),
    polish: Descent | None = None,
    prior_weight: float = 0.0,
    check_sign: bool = False,
    neighbourhood: Neighbourhood | None = None,
) -> Surfed:
    """Minimises `loss_fn(theta_T, x)` over x along the snapshots theta_0, ..., theta_T.

    The surface of a random network is close to a bowl, that of a trained one is wavy. Training
    changes it slowly, so a minimum followed from the one to the other often ends in the global one,
    where descent on the last surface alone gets stuck. One start and one problem: `jax.vmap` over
    many, see also `restarted`; wrap it in `jax.jit`, or every call compiles anew.

    >>> import jax, jax.numpy as jnp, optax
    >>> from zojax import inverse
    >>> def loss_fn(params, x, y):
    ...     return 0.5 * jnp.sum((params["w"] @ x - y) ** 2)
    >>> learning = [{"w": s * jnp.eye(2)} for s in (0.1, 0.5, 1.0)]
    >>> found = inverse.surf(
    ...     loss_fn, inverse.stack_snapshots(learning), jnp.zeros(2), jax.random.key(0),
    ...     inverse.Descent(optax.sgd(0.5), 20), args=(jnp.array([1.0, 2.0]),),
    ... )
    >>> found.x.round(3).tolist(), found.path.shape, int(found.num_steps)
    ([1.0, 2.0], (3, 2), 60)

    Args:
      loss_fn: `loss_fn(params, x, *args) -> scalar`, e.g. `reconstruction_loss(...)`.
      snapshots: stacked parameters, oldest first, see `stack_snapshots`.
      x0: the start, a pytree of floating-point arrays.
      key: typed key, for estimators and candidates; exact descent draws nothing.
      descent: how to descend on each snapshot, with fresh optimiser state.
      args: further arguments of the loss, e.g. the target.
      polish: a further descent on the last snapshot, usually with a smaller learning rate.
      prior_weight: w of a term w |x|^2 / 2 that is added to every surface on the path, and left out
        of the polish and of all reported values. Along latents that the last network ignores, the
        early surfaces carry x away; a small weight (1e-3) keeps it where latents come from.
      check_sign: before each descent also try -x, and go on from the lower: near a random network
        the loss has a second critical point opposite the solution (Hand and Voroninski). Two
        queries per snapshot.
      neighbourhood: descend only within a ball around where the snapshot before ended.

    Returns:
      `Surfed`. Where the loss is not finite, neither is the gradient, and x stays where it is: a
      target with NaN returns the start, with a value of NaN.

    Raises:
      TypeError: if `key` is not a typed key.
      ValueError: for snapshots that are not stacked, empty or of different lengths, for settings
        out of range, and for a start that is not floating point.

    Source: Song, Fan and Lafferty 2019, arXiv 1907.08653.
    """
    _check(snapshots, x0, key, descent, polish, prior_weight, neighbourhood)

    def follow(x: Params, at: tuple[Params, Scalar]) -> tuple[Params, Any]:
        params, number = at

        def surface(x: Params) -> Scalar:
            return loss_fn(params, x, *args) + _prior(prior_weight, x)

        step_key = jax.random.fold_in(key, number)
        extra = 0
        if check_sign:
            x, extra = _lower_sign(surface, x), 2
        if neighbourhood is None:
            end = descend(descent, surface, x, step_key)
        else:
            end = _within(neighbourhood, descent, surface, x, step_key)
        counts = (end.num_steps, end.num_queries + extra + 1)
        return end.x, (end.x, loss_fn(params, end.x, *args), *counts)

    count = num_snapshots(snapshots)
    x0 = jax.tree.map(jnp.asarray, x0)
    x, (path, values, steps, queries) = jax.lax.scan(follow, x0, (snapshots, jnp.arange(count)))
    found = Surfed(x, values[-1], path, values, jnp.sum(steps), jnp.sum(queries))
    if polish is None:
        return found
    last = jax.tree.map(lambda leaf: leaf[-1], snapshots)

    def surface(x: Params) -> Scalar:
        return loss_fn(last, x, *args)

    end = descend(polish, surface, x, jax.random.fold_in(key, count))
    return found._replace(
        x=end.x,
        value=surface(end.x),
        num_steps=found.num_steps + end.num_steps,
        num_queries=found.num_queries + end.num_queries + 1,
    )


def direct(
    loss_fn: LossFn,
    snapshots: Params,
    x0: Params,
    key: PRNGKey,
    descent: Descent,
    **options: Any,
) -> Surfed:
    """The baseline of `surf`: as many gradient steps, all of them on the last snapshot.

    One descent of (T + 1) `descent.num_steps` steps with one optimiser state, then the polish;
    fewer steps where `descent.advance` ends it. A sign check is made once.

    Args:
      loss_fn: as in `surf`.
      snapshots: as in `surf`; only the last is used.
      x0: the start.
      key: typed key.
      descent: that of `surf`.
      **options: those of `surf` but `neighbourhood`, which would hold it near its start.

    Raises:
      TypeError: as `surf`.
      ValueError: as `surf`, and for a neighbourhood.
    """
    check_descent("descent", descent)
    if options.get("neighbourhood") is not None:
        raise ValueError("neighbourhood must be None for direct: the ball would be around x0")
    count = num_snapshots(snapshots)
    last = jax.tree.map(lambda leaf: leaf[-1:], snapshots)
    longer = descent._replace(num_steps=count * descent.num_steps)
    return surf(loss_fn, last, x0, key, longer, **options)


def restarted(solve: Callable[..., Surfed]) -> Callable[..., Surfed]:
    """Solves from several starts and returns the solution of lowest loss.

    Args:
      solve: `solve(x0, key, *args) -> Surfed`, made of `surf` or `direct`.

    Returns:
      `(starts, key, *args) -> Surfed`; `starts` has a leading axis, steps and queries are those of
      all starts together. One problem: `jax.vmap` over many. It raises `ValueError` for starts
      without a common leading axis.
    """

    def solve_all(starts: Params, key: PRNGKey, *args: Any) -> Surfed:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(starts)}
        count = lengths.pop() if len(lengths) == 1 else ()
        if not count or count[0] == 0:
            shapes = jax.tree.map(jnp.shape, starts)
            raise ValueError(f"starts must share a leading axis of at least 1, got {shapes}")
        keys = jax.random.split(key, *count)
        found = jax.vmap(lambda x0, k: solve(x0, k, *args))(starts, keys)
        best = jnp.argmin(jnp.where(jnp.isfinite(found.value), found.value, jnp.inf))
        chosen: Surfed = jax.tree.map(lambda leaf: leaf[best], found)
        return chosen._replace(
            num_steps=jnp.sum(found.num_steps), num_queries=jnp.sum(found.num_queries)
        )

    return solve_all


def _check(
    snapshots: Params,
    x0: Params,
    key: PRNGKey,
    descent: Descent,
    polish: Descent | None,
    prior_weight: float,
    neighbourhood: Neighbourhood | None,
) -> None:
    check_key(key)
    check_that("prior_weight", prior_weight, ">= 0", lambda v: v >= 0)
    num_snapshots(snapshots)
    check_descent("descent", descent)
    if polish is not None:
        check_descent("polish", polish)
    if neighbourhood is not None:
        hint = "an inverse.Neighbourhood(radius, num_candidates)"
        check_instance("neighbourhood", neighbourhood, Neighbourhood, hint)
        check_positive("neighbourhood.radius", neighbourhood.radius)
        check_at_least("neighbourhood.num_candidates", neighbourhood.num_candidates, 1)
    leaves = jax.tree.leaves(x0)
    if not leaves or not all(trees.is_float(leaf) for leaf in leaves):
        raise ValueError("x0 must be a pytree of floating-point arrays, with at least one leaf")


def _prior(weight: float, x: Params) -> Any:
    if isinstance(weight, (int, float)) and weight == 0:
        return 0.0
    return 0.5 * weight * optax.tree.norm(x, squared=True)


def _lower_sign(surface: Callable[[Params], Scalar], x: Params) -> Params:
    opposite = jax.tree.map(jnp.negative, x)
    is_lower = surface(opposite) < surface(x)
    return jax.tree.map(lambda other, leaf: jnp.where(is_lower, other, leaf), opposite, x)


def _within(
    neighbourhood: Neighbourhood,
    descent: Descent,
    surface: Callable[[Params], Scalar],
    x: Params,
    key: PRNGKey,
) -> Descended:
    """The lowest end of projected descents from x and from points drawn from the ball around it."""
    radius, count = neighbourhood
    draw_key, descent_key = jax.random.split(key)
    # From the first candidate, x itself, on; jax.random.ball takes four times as long to compile.
    size, (normal_key, radius_key) = trees.size(x), jax.random.split(draw_key)
    draws = jax.random.normal(normal_key, (count, size))
    draws = draws / jnp.linalg.norm(draws, axis=1, keepdims=True)
    draws = draws * radius * jax.random.uniform(radius_key, (count, 1)) ** (1 / size)
    draws = draws.at[0].set(0)
    keys = jax.random.split(descent_key, count)

    def from_candidate(draw: chex.Array, key: PRNGKey) -> tuple[Descended, Scalar]:
        start = jax.tree.map(lambda a, b: (a + b).astype(a.dtype), x, trees.split(draw, x))
        end = descend(descent, surface, start, key, ball=(x, radius))
        return end, surface(end.x)

    ends, values = jax.vmap(from_candidate)(draws, keys)
    best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    return Descended(
        jax.tree.map(lambda leaf: leaf[best], ends.x),
        jnp.sum(ends.num_steps),
        jnp.sum(ends.num_queries) + count,
    )
