"""Is this normal or is it broken? A table about one estimator on one loss."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zojax import implicit, trees
from zojax.diagnostics.faults import find_faults
from zojax.diagnostics.laws import expected_cosine
from zojax.diagnostics.report import Diagnosis, make_rows
from zojax.diagnostics.sample import (
    Sample,
    collect,
    gradient,
    moved_fraction,
    noise_and_bias,
    split_half_cosine,
)
from zojax.diagnostics.sigma_window import Ladder, evaluate_ladder, usable_window
from zojax.errors import check_at_least, check_instance, check_positive
from zojax.estimation import estimate
from zojax.types import Estimate, Estimator, Execution, LossFn, Params, PRNGKey, State


def diagnose(
    est: Estimator,
    loss_fn: LossFn,
    params: Params,
    key: PRNGKey,
    *,
    args: tuple[Any, ...] = (),
    state: State = None,
    learning_rate: float | None = None,
    num_estimates: int = 32,
    differentiable: bool | Literal["auto"] = "auto",
    execution: Execution | None = None,
) -> Diagnosis:
    """Says whether an estimator works on a loss; prints a table and what to change.

    Makes `num_estimates` independent estimates at the same parameters, and evaluates the loss
    along up to 8 directions over ten and more orders of magnitude of sigma (about 35 sigmas), one
    point at a time. Compares with `jax.grad` where the loss has a useful one: the only place in
    the library that differentiates a loss, and not where `differentiable` is False.

    >>> import jax, zojax
    >>> est = zojax.finite_difference(num_directions=32, sigma=1e-2)
    >>> found = zojax.diagnose(est, lambda x: (x**2).sum(), jax.numpy.ones(64), jax.random.key(0))
    ... # doctest: +ELLIPSIS
    gaussian/central/identity ...
    >>> found.warnings
    ()

    Args:
      est: an estimator.
      loss_fn: `loss_fn(params, *args) -> scalar`.
      params: the parameters.
      key: any typed key.
      args: further arguments of the loss, as in training: one batch.
      state: of a stateful estimator; `est.init(params)` if None.
      learning_rate: to tell whether plain steps `learning_rate * grad` change the weights in their
        dtype. For optimisers that divide by the size of the gradient, such as Adam, use
        `zojax.sign_of_difference` or judge by `learning_rate` against the weights' ulp.
      num_estimates: at least 4.
      differentiable: whether to compare with `jax.grad`; "auto" tries, and takes a gradient that
        fails, is zero or is not finite for none. Then two halves of the estimates are compared.
      execution: how the estimates are run; `zojax.vectorized()` if None.

    Raises:
      ValueError: for arguments that are not what they should be.
    """
    check_instance("est", est, Estimator, "an estimator such as zojax.finite_difference(...)")
    if est.kernel is not None:
        raise ValueError(f"{est.name} sees more than values: use zojax.activations.diagnose")
    check_at_least("num_estimates", num_estimates, 4)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    if differentiable not in (True, False, "auto"):
        raise ValueError(f"differentiable must be True, False or 'auto', got {differentiable!r}")
    state = est.init(params) if state is None else state

    def loss(p: Params, arguments: Any) -> jax.Array:
        value = jnp.asarray(implicit.call(loss_fn, p, *arguments))
        return value.astype(trees.point_dtype(value.dtype))

    truth = None if differentiable is False else gradient(loss_fn, params, args, differentiable)
    center = jax.jit(loss)
    repeated = abs(float(center(params, args)) - float(center(params, args)))

    def run(run_key: PRNGKey) -> Estimate:
        return estimate(est, loss_fn, params, run_key, state, args=args, execution=execution)[0]

    keys = [jax.random.fold_in(key, i) for i in range(num_estimates + 1)]
    ladder = evaluate_ladder(est, loss, params, keys.pop(), state, args)
    sample = collect(run, keys, params, truth)
    moved = math.nan
    if learning_rate is not None:
        moved = moved_fraction(params, sample.first.grad, learning_rate)
    found = _summarise(est, params, args, sample, ladder, moved)
    faults = find_faults(found, sample, ladder, repeated, learning_rate)
    found = found._replace(warnings=tuple(faults))
    print(found)
    return found


def _summarise(
    est: Estimator,
    params: Params,
    args: tuple[Any, ...],
    sample: Sample,
    ladder: Ladder,
    moved: float,
) -> Diagnosis:
    count, n = len(sample.cosines), est.num_directions(params)
    law = math.nan if est.linear_error is None else est.linear_error(params)
    noise, bias = noise_and_bias(sample, est.preserves_scale)
    floor, ceiling = usable_window(ladder)
    examples = _num_examples(args)
    found = Diagnosis(
        expected_cosine=law if math.isnan(law) else expected_cosine(law, n),
        measured_cosine=float(np.mean(sample.cosines)),
        cosine_error=float(np.std(sample.cosines, ddof=1) / count**0.5),
        split_half_cosine=split_half_cosine(sample.halves, count, n),
        signal_to_noise=sample.signal_to_noise,
        sigma=ladder.sigma,
        sigma_floor=floor,
        sigma_ceiling=ceiling,
        noise=noise,
        bias=bias,
        moved_fraction=moved,
        queries_per_second=sample.queries_per_second,
        sample_forwards_per_second=sample.queries_per_second * examples,
        rows=(),
        warnings=(),
    )
    return found._replace(rows=make_rows(found, est, params, count))


def _num_examples(args: tuple[Any, ...]) -> float:
    """The common leading axis of the arrays among the loss's arguments, NaN if there is none."""
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(args) if jnp.ndim(leaf) > 0}
    return float(sizes.pop()) if len(sizes) == 1 else math.nan
