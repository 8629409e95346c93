"""The estimator."""

import functools
from collections.abc import Mapping
from typing import Any

from zojax.activations import kernel
from zojax.activations.kernel import Settings
from zojax.activations.noise import Distribution
from zojax.activations.plan import MODES
from zojax.errors import check_at_least, check_positive
from zojax.stencils import central, forward
from zojax.types import Estimator


def activation_noise(
    num_draws: int | Mapping[str, int] = 8,
    sigma: float | Mapping[str, float] = 0.01,
    *,
    antithetic: bool = True,
    noise: Distribution = "rademacher",
    sites: str | Mapping[str, str] = "auto",
    chunk_size: int = 1,
) -> Estimator:
    """Estimates gradients from per-example losses under noise on activations. Grey box.

    It needs more than a black box: `loss_fn(params, *args)` returns one loss per example, shape
    (batch,), and the estimator watches weights meet their inputs inside it. It takes no derivative
    of the network: what a layer does to its own weight is linear, and the transpose of that alone
    is applied. Unmodified Flax (Linen or NNX) and plain JAX functions work.

    Where a layer computes y_b = layer(x_b) for example b, the losses are evaluated at
    y_b +- sigma xi_b, all layers at once, and

        r_b = (loss_b(+) - loss_b(-)) / (2 sigma),  G_b = mean over draws of r_b xi_b,

    estimates dloss_b / dy_b; the weight's gradient is the mean over b of x_b outer G_b (its
    analogue for convolutions and lookups, the sum of G_b for a bias added to y). Each example thus
    returns a reward of its own for |y| numbers, instead of one reward per batch for |W|.

    The estimand is the gradient of the mean loss: unbiased where the loss is linear in what is
    perturbed, else with a bias of O(sigma^2). Examples must not interact in the loss: batch
    statistics (BatchNorm in training) bias it. See `expected_cosine` for its error.

    What noise a parameter gets is decided by how many numbers one reward is spread over:
    "activations" as above (|y| per example), "example_weights" (noise r_b outer s_b on each
    example's own copy of the weight, signs; |W| per example; norm scales and biases, and
    convolutions whose kernel is smaller than their output), or "weights" (shared noise, |W| per
    batch), the fallback for weights that are used in loops or in ways no layer does.
    `zojax.activations.describe` shows the table, which "auto" prints when a program is traced.

    >>> import jax, jax.numpy as jnp, zojax
    >>> def loss_fn(params, x, y):
    ...     return (jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2
    >>> params = {"first": jnp.full((3, 4), 0.1), "second": jnp.ones(4)}
    >>> est = zojax.activation_noise(num_draws=16, sigma=0.01, sites="activations")
    >>> x, y = jnp.ones((8, 3)), jnp.zeros(8)
    >>> value, grad = zojax.value_and_grad(loss_fn, est)(params, jax.random.key(0), x, y)

    Queries: 2 num_draws + 1 evaluations of the loss on the batch (num_draws + 1 if not
    antithetic); sample-forwards are that times the batch. The last one is unperturbed: it gives
    the value and the inputs of the layers. Memory: one evaluation of `chunk_size` draws, the sums
    G (as large as all y of the batch) and the inputs of all layers, as a first-order step has;
    flat in `num_draws`. In `info`, `num_nonfinite` counts losses of examples; such an example is
    left out of that draw, its partner too. `loss_std` is the root mean square difference of a
    perturbed loss to the same example's unperturbed one.

    Args:
      num_draws: draws of noise per estimate, in pairs if antithetic; all parameters at once. A
        mapping from paths, or beginnings of paths ("params/Dense_0"), to draws perturbs the
        parameters under each alone, for so many draws.
      sigma: size of the noise, in units of activations; a number, or a mapping from paths to
        numbers. One reward carries the noise of all parameters, and the largest would drown the
        others: noise on weights is divided by the root of the number of inputs that are summed,
        so that it moves outputs about as much, and on "example_weights" also by
        (|y| / |W|)^(1/4), as so few numbers need less.
      antithetic: evaluate pairs. If not, an example's losses are centred over its draws, of which
        two are then the least.
      noise: "rademacher" (signs) or "gaussian", on activations.
      sites: "auto", one kind of noise for all parameters, or a mapping from paths to kinds.
      chunk_size: draws evaluated at a time, unless the execution says another number. The
        estimate does not depend on it.

    Raises:
      ValueError: for arguments that are not what they should be; when used, for a loss without one
        value per example, or where no parameter can have what was asked for.

    Source: Ren et al. 2023 (activation perturbation), arXiv 2210.03310; Wen et al. 2018 (noise on
    the weights of each example), arXiv 1803.04386.
    """
    smallest = 1 if antithetic else 2
    for name, value in _entries("num_draws", num_draws):
        check_at_least(name, value, smallest)
    for name, value in _entries("sigma", sigma):
        check_positive(name, value)
    for name, value in _entries("sites", sites):
        if value not in MODES and value != "auto":
            raise ValueError(f"{name} must be 'auto' or one of {MODES}, got {value!r}")
    if noise not in ("rademacher", "gaussian"):
        raise ValueError(f"noise must be 'rademacher' or 'gaussian', got {noise!r}")
    check_at_least("chunk_size", chunk_size, 1)
    settings = Settings(num_draws, sigma, antithetic, noise, sites, chunk_size)
    points = 2 if antithetic else 1

    def refuse(*args: Any) -> Any:
        raise ValueError(
            "activation_noise names no points for a loss of the parameters alone: there is no ask "
            "and tell, and zojax.activations.diagnose takes the place of zojax.diagnose"
        )

    return Estimator(
        name=f"activation_noise({settings.total}, {noise})",
        stencil=central if antithetic else forward,
        is_global=not antithetic,
        is_stateful=False,
        preserves_scale=True,
        init=lambda params: (),
        num_directions=lambda params: settings.total,
        num_queries=lambda params: points * settings.total + 1,
        draw=refuse,
        point=refuse,
        coefficients=refuse,
        combine=refuse,
        finish=refuse,
        update=lambda state, estimate, evaluations: state,
        kernel=functools.partial(kernel.estimate, settings),
    )


def _entries(name: str, given: Any) -> list[tuple[str, Any]]:
    if isinstance(given, Mapping):
        if not given:
            raise ValueError(f"{name} must name at least one parameter, got an empty mapping")
        return [(f"{name}[{path!r}]", value) for path, value in given.items()]
    return [(name, given)]
