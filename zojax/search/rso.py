"""Random search optimisation: one weight at a time, by values only."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np

from zojax.search import stages as chain
from zojax.search.kernel import RSO, Options, build
from zojax.search.layered import layered_moves, places
from zojax.search.moves import Moves, black_box
from zojax.search.order import Order
from zojax.search.stages import Stage
from zojax.types import LossFn, Params


def rso(
    loss_fn: LossFn,
    *,
    num_rounds: int = 50,
    block_size: int = 1,
    batch_size: int | None = None,
    group_size: int = 1,
    final_scale: float = 0.1,
    weight_decay: float = 1e-4,
    vector_scale: float = 0.167,
    order: Order = "last_first",
) -> RSO:
    """Draws a change for one weight, evaluates w, w + delta, w - delta and keeps the best.

    No gradient is estimated, and the loss may be anything that can be compared. In round e = 0, 1,
    ... of E delta ~ N(0, (s (a + (1 - a) (E - e) / E))^2), s being the standard deviation of the
    layer's initial weights and a `final_scale`. Queries per weight: 3; without weight decay 2, and
    one more per block, since the loss of what was kept is known.

    >>> import jax, jax.numpy as jnp
    >>> from zojax import search
    >>> def loss_fn(params):
    ...     return jnp.sum((params["w"] - 1.0) ** 2)
    >>> kernel = search.rso(loss_fn, num_rounds=30, block_size=6, weight_decay=0.0)
    >>> state = kernel.init({"w": jax.random.normal(jax.random.key(0), (2, 3))})
    >>> step = jax.jit(kernel.step)
    >>> for _ in range(30 * kernel.steps_per_round(state.params)):
    ...     state, info = step(state, jax.random.key(1))
    >>> float(info.value) < 0.05
    True

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`, or one loss per example, whose mean is taken
        (in float64 under `jax_enable_x64`).
      num_rounds: E, over which the changes shrink; later rounds keep the last size.
      block_size: weights that share a mini-batch. 1 draws a new one for every weight.
      batch_size: examples per block: consecutive ones from a random start, so shuffle the data
        once. None for all.
      group_size: 1 is the published algorithm. More is *batched RSO*, an approximation: that many
        weights of a layer are tried alone on the same point, the improvements are joined, and the
        joint change is taken if it is better than the best single one, which is taken otherwise.
        One query more per group.
      final_scale: a, in (0, 1].
      weight_decay: a weight is multiplied by 1 - weight_decay before it is tried.
      vector_scale: s of leaves of fewer than two dimensions (biases, normalisation).
      order: "last_first" visits the last layer first, layers being sorted by name (numbers as
        numbers).

    Raises:
      ValueError: for numbers outside these ranges; from `init` for a leaf that is not floating
        point, or a scale that is 0; from `step` for a batch larger than the data.
      TypeError: from `step` if `key` is not a typed key.

    Source: Tripathi and Singh 2020, arXiv 2005.05955.
    """
    options = Options(
        num_rounds,
        block_size,
        batch_size,
        group_size,
        final_scale,
        weight_decay,
        vector_scale,
        order,
    )
    moves = black_box(loss_fn, group_size)

    def dispatch(
        params: Params, leaf: chex.Array, batch: tuple[Any, ...], run: Callable[[Moves], Any]
    ) -> Any:
        del batch
        return run(moves(params, leaf))

    return build(dispatch, moves, options)


def layered_rso(
    stages: Sequence[Stage],
    criterion: Callable[[chex.Array, Any], chex.Array],
    **options: Any,
) -> RSO:
    """`rso` of a network given as a chain of stages: the same decisions, for far less work.

    `step(state, key, inputs, targets)` and its counts are those of `rso` with the loss
    `criterion(network(inputs), targets)`. What comes before the touched layer is computed once per
    block; a changed weight is followed along its channel to the next linear layer, and only what
    lies behind is computed anew, for both signs at once.

    Args:
      stages: the chain, e.g. `zojax.flax.linen_stages(module, variables, inputs)`.
      criterion: `(outputs, targets) -> scalar`, or one loss per example, whose mean is taken.
      **options: those of `rso`. With `group_size` > 1 a group is evaluated in parallel.

    Raises:
      ValueError: as `rso`; from `step` where stages do not fit parameters and inputs.
    """
    unknown = sorted(set(options) - set(Options._fields))
    if unknown:
        raise ValueError(f"unknown options {unknown}; they are {list(Options._fields)}")
    checked = Options(**options)
    stages = tuple(stages)

    def dispatch(
        params: Params, leaf: chex.Array, batch: tuple[Any, Any], run: Callable[[Moves], Any]
    ) -> Any:
        if len(batch) != 2:
            raise ValueError(f"step takes (state, key, inputs, targets), got {len(batch)} arrays")
        chain.check(stages, params, batch[0])
        count = len(jax.tree.leaves(params))
        branches = [lambda i=i: run(moves_of(params, i)) for i in range(count)]
        return jax.lax.switch(leaf, branches)

    def moves_of(params: Params, leaf: int) -> Moves:
        weights = jax.tree.leaves(params)[leaf]
        lanes = min(checked.group_size, np.size(weights))
        return layered_moves(stages, criterion, places(stages, params)[leaf], weights, lanes)

    return build(dispatch, moves_of, checked)
