"""Types shared by every layer: parameters, keys, and the parts an estimate is made of.

Shapes use these letters: d perturbed parameters, n directions, k points per direction
(2 for `central`, 1 for `forward` and `one_point`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex

Params: TypeAlias = Any
"""A pytree of arrays."""
PRNGKey: TypeAlias = chex.Array
"""A typed key, `jax.random.key(seed)`, with the default threefry implementation."""
Scalar: TypeAlias = chex.Array
"""An array of shape ()."""
Noise: TypeAlias = Any
"""What a direction distribution draws: a pytree only that distribution reads."""
State: TypeAlias = Any
"""What an estimator carries from step to step; () when it carries nothing."""
LossFn: TypeAlias = Callable[..., Any]
"""`loss_fn(params, *args) -> scalar`, or `(scalar, aux)` where `has_aux` is set."""


class EstimateInfo(NamedTuple):
    """What an estimate cost and whether it can be trusted. All fields have shape ().

    Attributes:
      num_queries: loss evaluations made, counted from the plan.
      num_nonfinite: how many of them came back NaN or infinite, or were of no use because their
        difference over sigma is.
      loss_std: standard deviation of the finite losses over the evaluated points, in loss units.
      signal_to_noise: root mean square of the stencil's differences (for `one_point`, of the
        losses' deviation from their mean) over the rounding error of one float32 loss value (a
        loss computed in half precision has far more). Below about 10 the differences are mostly
        rounding: raise sigma or compute the loss in float64.
    """

    num_queries: Scalar
    num_nonfinite: Scalar
    loss_std: Scalar
    signal_to_noise: Scalar


class Estimate(NamedTuple):
    """A gradient estimate.

    Attributes:
      value: mean of the finite evaluated losses (`central`, `one_point`), or the loss at the
        parameters (`forward`), shape (); NaN if every evaluation failed.
      grad: estimated gradient, structure, shapes and dtypes of the parameters; zero on leaves
        that are not perturbed, and everywhere if every evaluation failed.
      info: `EstimateInfo`.
    """

    value: Scalar
    grad: Params
    info: EstimateInfo


class Adaptation(NamedTuple):
    """How a distribution follows the run. Its state is carried by the estimator.

    Attributes:
      init: `(params) -> state`.
      bind: `(state) -> Directions`, the distribution of this step.
      update: `(state, grad) -> state` after a step, `grad` being its estimate.
      guide: `(state, surrogate) -> state` before a step, where a surrogate gradient (a pytree like
        `params`) informs the distribution; None if it takes none.
    """

    init: Callable[[Params], State]
    bind: Callable[[State], "Directions"]
    update: Callable[[State, Params], State]
    guide: Callable[[State, Params], State] | None = None


class Directions(NamedTuple):
    """A distribution of random directions eps with score s(eps): E[s] = 0, E[s eps^T] = M.

    `params` below is always the perturbed part of the parameters: a pytree of floating-point
    leaves only. Noise is drawn in float32 whatever their dtype.

    Attributes:
      name: for messages and tables.
      draw: `(key, params) -> noise`, one direction from one flat random draw; with
        `block_size`, `(key, params, block) -> noises`, a whole block of them stacked on a
        leading axis.
      perturb: `(params, noise, scale) -> params + scale * eps`, leaves in at least float32.
      combine: `(coefficients (n,), noises stacked on axis 0, params) -> sum_i c_i s(eps_i)`,
        float32, structure and shapes of `params`; never n directions at once where the noise
        is structured.
      block_size: `(dimension, num_directions) -> size` for directions that are drawn jointly;
        None for independent ones. Raises ValueError for a block too large to hold.
      fixed_number: `(params) -> n` where the distribution is a finite set that is walked
        through completely (all coordinates); such an estimate is a sum over the set, so a
        failed direction leaves a zero instead of a smaller sample.
      moment: `(params) -> M`, the (d, d) matrix E[s eps^T]; None means the identity.
      linear_error: `(params, num_directions) -> E|estimate - g|^2 / |g|^2` of a difference stencil
        on a linear loss with gradient g; None if it is not known.
      adaptation: how the distribution changes from step to step; None if it does not. `draw`,
        `perturb` and `combine` are then those of the first step.
    """

    name: str
    draw: Callable[..., Noise]
    perturb: Callable[[Params, Noise, Any], Params]
    combine: Callable[[chex.Array, Noise, Params], Params]
    block_size: Callable[[int, int], int] | None = None
    fixed_number: Callable[[Params], int] | None = None
    moment: Callable[[Params], chex.Array] | None = None
    linear_error: Callable[[Params, int], float] | None = None
    adaptation: Adaptation | None = None


class Stencil(NamedTuple):
    """Where along a direction the loss is evaluated, and how the values are differenced.

    The directional derivative is `(values @ weights + center_weight * center) / sigma`.

    Attributes:
      name: for messages and tables.
      offsets: the points, in units of sigma along the direction.
      weights: one per offset.
      center_weight: weight of the loss at the unperturbed parameters; 0 if it is not evaluated.
    """

    name: str
    offsets: tuple[float, ...]
    weights: tuple[float, ...]
    center_weight: float = 0.0

    @property
    def has_center(self) -> bool:
        """Whether the unperturbed parameters are evaluated, once per estimate."""
        return self.center_weight != 0.0

    @property
    def is_difference(self) -> bool:
        """Whether a constant added to the loss cancels."""
        return sum(self.weights) + self.center_weight == 0.0


class Shaping(NamedTuple):
    """A transformation of the returned values before they weigh the directions.

    Attributes:
      name: for messages and tables.
      on_values: `(values (n, k), center () or None, valid (n,)) -> (values, center)`.
      on_derivatives: `(derivatives (n,), valid (n,)) -> coefficients (n,)`, applied after the
        stencil's difference and the division by sigma.
      is_global: True if the hooks need all n directions at once; a local shaping may be
        applied chunk by chunk, in one pass.
      needs_difference: True if it makes no sense without a difference (`one_point`).
      preserves_scale: True if the result is still an estimate of the gradient itself.
      efficiency: squared correlation of the coefficients with the directional derivatives where
        these are normal, as on a linear loss in many dimensions: 1 if nothing is lost, None if it
        is not known.
    """

    name: str
    on_values: Callable[..., tuple[chex.Array, chex.Array | None]]
    on_derivatives: Callable[[chex.Array, chex.Array], chex.Array]
    is_global: bool
    needs_difference: bool = False
    preserves_scale: bool = False
    efficiency: float | None = None


class Estimator(NamedTuple):
    """Names the points to evaluate and combines their values; never calls the loss.

    Build one with `zojax.finite_difference` or a preset. `params` is the whole parameter
    pytree in every field.

    Attributes:
      name: for messages and tables.
      stencil: the `Stencil`; its offsets and centre fix the queries per direction.
      is_global: whether `coefficients` needs all n directions at once.
      is_stateful: whether `init` returns anything that must be threaded from step to step.
      preserves_scale: whether it estimates the gradient itself, unbiased on a linear loss.
      init: `params -> state`.
      num_directions: `params -> n`.
      num_queries: `params -> int`, exact.
      draw: `(key, params, state, start, count, alignment) -> noises` of directions start ...
        start+count-1, stacked on axis 0; `count` is static, `start` may be traced and is then
        a multiple of `alignment`.
      point: `(params, state, noise, offset) -> params` for one direction.
      coefficients: `(values (m, k), center, state) -> (coefficients (m, ...), valid (m,))`.
      combine: `(coefficients, noises, params, state) -> sum`, to be added up over chunks.
      finish: `(total, num_valid, params, state) -> grad`, the mean in the parameters' dtypes.
      update: `(state, estimate, evaluations) -> state` after a step.
      adjust: `(values (m, k), noises, params, state) -> values`, what `coefficients` gets instead
        of the losses themselves; None for the losses.
      guide: `(state, surrogate) -> state` before a step, for estimators that a surrogate gradient
        can inform; None for the others.
      linear_error: `params -> E|estimate - g|^2 / |g|^2` on a linear loss with gradient g; if the
        scale is not preserved, of an estimate with the same cosine to g; None if not known.
      sigma: `state -> smoothing radius` of this step; None if there is no single one.
      kernel: `(loss, params, key, size, share) -> Estimate` of a method that needs more than
        scalar values, under an execution with `size` directions at a time and a `Share` of them;
        `loss` is the user's own, unchecked. Such an estimator names no points. None for the others.
    """

    name: str
    stencil: Stencil
    is_global: bool
    is_stateful: bool
    preserves_scale: bool
    init: Callable[[Params], State]
    num_directions: Callable[[Params], int]
    num_queries: Callable[[Params], int]
    draw: Callable[[PRNGKey, Params, State, Any, int, int], Noise]
    point: Callable[[Params, State, Noise, Any], Params]
    coefficients: Callable[..., tuple[chex.Array, chex.Array]]
    combine: Callable[[chex.Array, Noise, Params, State], Any]
    finish: Callable[[Any, chex.Array, Params, State], Params]
    update: Callable[[State, Estimate, "Evaluations"], State]
    adjust: Callable[[chex.Array, Noise, Params, State], chex.Array] | None = None
    guide: Callable[[State, Params], State] | None = None
    linear_error: Callable[[Params], float] | None = None
    sigma: Callable[[State], Any] | None = None
    kernel: Callable[..., Estimate] | None = None


class Evaluations(NamedTuple):
    """What an execution returns for one estimate.

    Attributes:
      values: (n, k) losses at the perturbed points.
      center: () loss at the parameters, or None if the stencil has no centre.
      total: sum over directions of coefficient times score, before division by n; what the
        estimator's `combine` returns.
      num_valid: () how many directions entered the sum.
      aux: auxiliary output of the centre, or None.
    """

    values: chex.Array
    center: chex.Array | None
    total: Any
    num_valid: chex.Array
    aux: Any = None


class Execution(NamedTuple):
    """How the evaluations of an estimate are run.

    Attributes:
      name: for messages and tables.
      run: `(estimator, loss, params, key, state, args, has_aux) -> Evaluations`, where
        `loss(params, *args)` is a checked scalar (and aux); the `Estimate` where the estimator has
        a kernel.
    """

    name: str
    run: Callable[..., Any]
