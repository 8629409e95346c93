"""Gradients of losses that are unrolled over many inner steps, a truncation at a time.

An inner computation (a training run, a simulation) of T truncations, an *episode*, is driven by
outer parameters. Waiting for its end makes one update per episode; cutting it into truncations that
forget each other is biased. The estimators here update after every truncation without that bias.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from zojax import trees
from zojax.directions import draw_range, gaussian
from zojax.errors import check_at_least, check_instance, check_positive, check_that
from zojax.estimators.finite_difference import cast_gradient
from zojax.keys import check_key
from zojax.types import Estimate, EstimateInfo, Params, PRNGKey

Unroll: TypeAlias = Callable[..., tuple[Any, Any]]
"""`unroll(params, inner, key, *args) -> (loss, inner)`, one truncation from an inner state on."""
InnerInit: TypeAlias = Callable[[PRNGKey], Any]
"""`inner_init(key) -> inner`, the inner state an episode begins with, a pytree of arrays."""
_Keep: TypeAlias = Callable[[chex.Array, chex.Array, chex.Array], tuple[chex.Array, chex.Array]]


class UnrolledState(NamedTuple):
    """Where the n pairs are in their episodes.

    Attributes:
      inner: inner states, leading axes (n, 2): pair, and sign of its perturbation (+, -).
      noise: what the difference of a pair's losses multiplies, (n, d) float32, in units of sigma;
        zero where an episode begins.
      clock: truncations done in the running episode, (n,) int32.
      length: truncations of the running episode, (n,) int32; `num_truncations`, or less in the
        first episode of staggered pairs.
    """

    inner: Any
    noise: chex.Array
    clock: chex.Array
    length: chex.Array


class UnrolledEstimator(NamedTuple):
    """A gradient estimator that runs one truncation of every pair per estimate.

    Attributes:
      name: for messages and tables.
      num_queries: unrolls per estimate, 2 n.
      init: `(params, key) -> UnrolledState`, all pairs at the beginning of an episode.
      estimate: `(params, key, state, *args) -> (Estimate, UnrolledState)`; `args` go to `unroll`.
        Use a new key for every estimate. `value` is the mean of the finite losses.
    """

    name: str
    num_queries: int
    init: Callable[[Params, PRNGKey], UnrolledState]
    estimate: Callable[..., tuple[Estimate, UnrolledState]]


def pes(
    unroll: Unroll,
    inner_init: InnerInit,
    *,
    num_truncations: int,
    num_directions: int = 16,
    sigma: float | chex.Array = 0.1,
    stagger: bool = True,
    mask: trees.Mask | None = None,
) -> UnrolledEstimator:
    """Persistent evolution strategies: new noise in every truncation, weighed by its sum.

    With eps_t ~ N(0, I) drawn for truncation t, a pair's estimate is
    (L_t^+ - L_t^-) / (2 sigma) (eps_1 + ... + eps_t). Its mean over an episode of T truncations is
    an unbiased estimate of the gradient of
    E[(1/T) sum_t L_t(params + sigma eps_1, ..., params + sigma eps_t)], the mean loss of a
    truncation when *every truncation has its own perturbation*, for any measurable loss. A sum over
    the episode is T times that. Exact while params stay; what they change during an episode adds a
    bias of the order of that change. Losses quadratic in params have their own gradient.

    The sum of the noise grows, so the variance grows with t unless influence fades; `nres` has no
    such growth. Partners of a pair share inner keys and initial states (common random numbers). A
    pair with a non-finite loss is dropped from the estimate and begins a new episode; if all are,
    the gradient is zero and the value NaN. Queries: 2 n unrolls per estimate, all at once.

    Args:
      unroll: one truncation; its loss is the mean over its steps, or whatever is to be minimised.
        Never differentiated.
      inner_init: makes the inner state an episode begins with; called for every pair at each
        estimate, and used where an episode has ended.
      num_truncations: T, truncations per episode.
      num_directions: antithetic pairs n.
      sigma: standard deviation of a perturbation, in parameter units.
      stagger: pairs end their first episode at different times, evenly spread, so that from then
        on one estimate covers the whole episode. Without it all pairs are in the same truncation.
        The T first estimates see the beginning of an episode too often.
      mask: which leaves are perturbed; see `zojax.trees.resolve_mask`.

    Raises:
      ValueError: for `num_truncations` < 1, `num_directions` < 1, `sigma` <= 0, what is not a
        function; when called, for an `unroll` that does not return a scalar and an inner state
        like the one it got.

    Source: Vicol, Metz and Sohl-Dickstein 2021, arXiv 2112.13835.
    """

    def keep(kept: chex.Array, drawn: chex.Array, begins: chex.Array) -> Any:
        del begins
        return drawn, kept + drawn

    options = (num_truncations, num_directions, sigma, stagger, mask)
    return _build("pes", keep, unroll, inner_init, *options)


def nres(
    unroll: Unroll,
    inner_init: InnerInit,
    *,
    num_truncations: int,
    num_directions: int = 16,
    sigma: float | chex.Array = 0.1,
    stagger: bool = True,
    mask: trees.Mask | None = None,
) -> UnrolledEstimator:
    """Noise-reuse evolution strategies: one perturbation for the whole episode.

    A pair's estimate is (L_t^+ - L_t^-) / (2 sigma) eps, with eps ~ N(0, I) drawn when its episode
    begins. Its mean over an episode of T truncations is an unbiased estimate of the gradient of
    E[(1/T) sum_t L_t(params + sigma eps)], the mean loss of a truncation *smoothed with one
    perturbation*: what plain evolution strategies on whole episodes estimate, but with an update
    after every truncation. Its variance does not grow with t by itself and is usually below that of
    `pes`; estimates of one episode share their noise, so they do not average out. All else,
    arguments and errors as in `pes`.

    Source: Li et al. 2023, arXiv 2304.12180.
    """

    def keep(kept: chex.Array, drawn: chex.Array, begins: chex.Array) -> Any:
        noise = jnp.where(begins[:, None], drawn, kept)
        return noise, noise

    options = (num_truncations, num_directions, sigma, stagger, mask)
    return _build("nres", keep, unroll, inner_init, *options)


def truncated_es(
    unroll: Unroll,
    inner_init: InnerInit,
    *,
    num_truncations: int,
    num_directions: int = 16,
    sigma: float | chex.Array = 0.1,
    stagger: bool = True,
    mask: trees.Mask | None = None,
) -> UnrolledEstimator:
    """Evolution strategies on single truncations: biased, the reference to compare with.

    A pair's estimate is (L_t^+ - L_t^-) / (2 sigma) eps_t. It sees what params do within one
    truncation and takes the inner state as given, like truncated back-propagation, so it may even
    have the wrong sign. All else, arguments and errors as in `pes`.
    """

    def keep(kept: chex.Array, drawn: chex.Array, begins: chex.Array) -> Any:
        del kept, begins
        return drawn, drawn

    options = (num_truncations, num_directions, sigma, stagger, mask)
    return _build("truncated_es", keep, unroll, inner_init, *options)


def _build(
    name: str,
    keep: _Keep,
    unroll: Unroll,
    inner_init: InnerInit,
    num_truncations: int,
    n: int,
    sigma: Any,
    stagger: bool,
    mask: trees.Mask | None,
) -> UnrolledEstimator:
    """The estimator whose `keep(kept, drawn, begins)` gives what is applied and what is kept."""
    _check(unroll, inner_init, num_truncations, n, sigma)
    directions = gaussian()

    def begin(key: PRNGKey) -> Any:
        """The same inner state for both partners."""
        return jax.tree.map(lambda x: jnp.stack([x, x]), inner_init(key))

    def keys_of_pairs(key: PRNGKey) -> tuple[Any, Any]:
        """Keys (n,) of new episodes, and of unrolls; noise has a domain of its own."""
        pairs = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(n))
        return pairs[:, 0], pairs[:, 1]

    @jax.jit
    def init(params: Params, key: PRNGKey) -> UnrolledState:
        check_key(key)
        selected, _ = trees.partition(params, mask)
        inner = jax.vmap(begin)(keys_of_pairs(key)[0])
        noise = jnp.zeros((n, trees.size(selected)), jnp.float32)
        ahead = jnp.arange(n, dtype=jnp.int32) * num_truncations // n
        length = num_truncations - ahead * int(stagger)
        return UnrolledState(inner, noise, jnp.zeros(n, jnp.int32), length)

    @jax.jit
    def estimate(params: Params, key: PRNGKey, state: UnrolledState, *args: Any) -> Any:
        check_key(key)
        check_instance("state", state, UnrolledState, "est.init(params, key) or its successor")
        selected, rest = trees.partition(params, mask)
        begin_keys, unroll_keys = keys_of_pairs(key)
        drawn = draw_range(directions, key, selected, 0, n, n)
        applied, noise = keep(state.noise, drawn, state.clock == 0)

        def run(noise: chex.Array, inner: Any, key: PRNGKey, sign: Any) -> tuple[Any, Any]:
            point = trees.merge(directions.perturb(selected, noise, sign * sigma), rest)
            return _checked(unroll(point, inner, key, *args), inner)

        pair = jax.vmap(run, (None, 0, None, 0))
        signs = jnp.asarray([1.0, -1.0], jnp.float32)
        losses, inner = jax.vmap(pair, (0, 0, 0, None))(applied, state.inner, unroll_keys, signs)

        slopes = (losses[:, 0] - losses[:, 1]) / jnp.asarray(2 * sigma, losses.dtype)
        slopes = slopes.astype(jnp.float32)
        valid = jnp.isfinite(slopes)
        num_valid = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
        mean = directions.combine(jnp.where(valid, slopes, 0) / num_valid, noise, selected)
        grad = jax.tree.map(lambda g, leaf: cast_gradient(g, leaf.dtype), mean, selected)
        grad = trees.merge(grad, jax.tree.map(jnp.zeros_like, rest))

        over = ~valid | (state.clock + 1 >= state.length)
        moved = UnrolledState(inner, noise, state.clock + 1, state.length)
        state = _restarted(moved, over, jax.vmap(begin)(begin_keys), num_truncations)
        value, info = _describe(losses, valid)
        return Estimate(value, grad, info), state

    return UnrolledEstimator(name, 2 * n, init, estimate)


def _check(unroll: Any, inner_init: Any, num_truncations: int, n: int, sigma: Any) -> None:
    """Raises ValueError unless the parts are what they should be."""
    check_that("unroll", unroll, "a function (params, inner, key, *args)", callable)
    check_that("inner_init", inner_init, "a function (key)", callable)
    check_at_least("num_truncations", num_truncations, 1)
    check_at_least("num_directions", n, 1)
    check_that("sigma", sigma, "a number, for noise is kept", lambda s: not callable(s))
    check_positive("sigma", sigma)


def _restarted(
    state: UnrolledState, over: chex.Array, fresh: Any, num_truncations: int
) -> UnrolledState:
    """The state in which pairs that are `over` (n,) begin an episode from `fresh` inner states."""
    return UnrolledState(
        inner=jax.tree.map(lambda x, y: jax.vmap(jnp.where)(over, x, y), fresh, state.inner),
        noise=jnp.where(over[:, None], 0, state.noise),
        clock=jnp.where(over, 0, state.clock),
        length=jnp.where(over, num_truncations, state.length),
    )


def _checked(output: Any, inner: Any) -> tuple[chex.Array, Any]:
    """The loss and the next inner state, if `unroll` returned that."""
    if not (isinstance(output, tuple) and len(output) == 2):
        raise ValueError(f"unroll must return (loss, inner), got {type(output).__name__}")
    loss, after = jnp.asarray(output[0]), output[1]
    if loss.shape != () or jnp.issubdtype(loss.dtype, jnp.complexfloating):
        raise ValueError(f"unroll must return a real scalar loss, got {loss.dtype}{loss.shape}")
    expected, found = (
        jax.tree.map(lambda x: f"{jnp.result_type(x)}{jnp.shape(x)}", x) for x in (inner, after)
    )
    if expected != found:
        raise ValueError(f"unroll must return an inner state like {expected}, got {found}")
    return loss.astype(trees.point_dtype(loss.dtype)), after


def _describe(losses: chex.Array, valid: chex.Array) -> tuple[chex.Array, EstimateInfo]:
    """Mean of the finite losses (n, 2), and the info of the estimate they make."""
    finite = jnp.isfinite(losses)
    kept = jnp.where(finite, losses, 0)
    mean = jnp.sum(kept) / jnp.sum(finite, dtype=losses.dtype)  # NaN when all failed
    variance = jnp.mean((losses - mean) ** 2, where=finite)
    differences = jnp.mean((losses[:, 0] - losses[:, 1]) ** 2, where=valid)
    rounding = jnp.sqrt(jnp.mean(losses**2, where=finite)) * float(jnp.finfo(losses.dtype).eps)
    overflown = 2 * jnp.sum(jnp.all(finite, axis=1) & ~valid)  # finite, but not their difference
    return mean, EstimateInfo(
        num_queries=jnp.asarray(losses.size, jnp.int32),
        num_nonfinite=(jnp.sum(~finite) + overflown).astype(jnp.int32),
        loss_std=jnp.sqrt(variance),
        signal_to_noise=jnp.sqrt(differences) / rounding,
    )
