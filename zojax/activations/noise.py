"""Noise on activations and weights: its layout, how it is drawn, added and summed up again."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.activations.meetings import ELEMENTWISE, Meeting
from zojax.activations.plan import Plan
from zojax.activations.program import Program
from zojax.directions.base import unpack_signs
from zojax.types import PRNGKey

Distribution = Literal["rademacher", "gaussian"]


class Unit(NamedTuple):
    """Noise that is drawn together and gives one sum.

    Attributes:
      leaf: the parameter it is for.
      kind: `activation` (one number per output), `outer` (weights r outer s per example),
        `elementwise` (weights per example) or `batch` (weights shared by the examples).
      site: position of its site; None for `batch` and `elementwise`.
      start: first of its numbers, per example; for `batch` among those of the batch.
      stop: one after its last.
      split: for `outer`: where s begins.
    """

    leaf: int
    kind: str
    site: int | None
    start: int
    stop: int
    split: int = 0


class Layout(NamedTuple):
    """All units of a plan.

    Attributes:
      units: in order.
      per_example: numbers per example.
      per_batch: numbers shared by the batch.
    """

    units: list[Unit]
    per_example: int
    per_batch: int


class Noise(NamedTuple):
    """One draw: `examples` (batch, per_example) and `batch` (per_batch,)."""

    examples: chex.Array
    batch: chex.Array


def make_layout(plan: Plan) -> Layout:
    """Lays out the noise of a plan.

    Args:
      plan: what every parameter gets.
    """
    units: list[Unit] = []
    ends = {"example": 0, "batch": 0}

    def add(leaf: int, kind: str, site: int | None, size: int, split: int = 0) -> None:
        of = "batch" if kind == "batch" else "example"
        start = ends[of]
        ends[of] = start + size
        units.append(Unit(leaf, kind, site, start, start + size, start + split))

    for leaf, row in plan.rows.items():
        mine = [i for i, site in enumerate(plan.sites) if site.leaf == leaf]
        if row.mode == "weights":
            add(leaf, "batch", None, int(np.prod(row.shape)))
        elif row.mode == "activations":
            for i in mine:
                if plan.roots[i] == i:
                    add(leaf, "activation", i, plan.sites[i].size)
        elif row.mode == "example_weights":
            if plan.sites[mine[0]].kind in ELEMENTWISE:
                add(leaf, "elementwise", None, int(np.prod(row.shape)))
            else:
                first, second = plan.sites[mine[0]].factors
                add(leaf, "outer", mine[0], first + second, first)
    return Layout(units, ends["example"], ends["batch"])


def unit_of_leaf(plan: Plan, layout: Layout, leaf: int) -> int:
    """Position of (the first of) the units whose sums give a parameter's gradient.

    Args:
      plan: what every parameter gets.
      layout: of the noise.
      leaf: which parameter.
    """
    sites = {plan.roots[i] for i, site in enumerate(plan.sites) if site.leaf == leaf}
    return next(
        i
        for i, unit in enumerate(layout.units)
        if (unit.leaf == leaf if unit.site is None else unit.site in sites)
    )


def draw(
    layout: Layout, distribution: Distribution, key: PRNGKey, index: Any, first: Any, batch: int
) -> Noise:
    """Draws the noise of draw `index`: one flat draw per example and one for the batch.

    Args:
      layout: how much.
      distribution: of noise on activations; noise on weights is made of signs.
      key: the estimate's noise key.
      index: global index of the draw, may be traced.
      first: global index of the first example, may be traced.
      batch: number of examples.
    """
    key = jax.random.fold_in(key, index)
    keys = jax.vmap(lambda b: jax.random.fold_in(key, b + 1))(first + jnp.arange(batch))
    if distribution == "gaussian":
        examples = jax.vmap(lambda k: jax.random.normal(k, (layout.per_example,), "float32"))(keys)
    else:
        examples = jax.vmap(lambda k: _signs(k, layout.per_example))(keys)
    for_batch = _signs(jax.random.fold_in(key, 0), layout.per_batch)
    return jax.lax.optimization_barrier(Noise(examples, for_batch))


def _signs(key: PRNGKey, size: int) -> chex.Array:
    words = jax.random.bits(key, (-(-size // 32),), dtype="uint32")
    return unpack_signs(words, size)


def perturbed(
    program: Program,
    plan: Plan,
    layout: Layout,
    leaves: Sequence[chex.Array],
    noise: Noise,
    scales: Sequence[Any],
) -> chex.Array:
    """Evaluates the losses with noise.

    Args:
      program: the loss.
      plan: what every parameter gets.
      layout: of the noise.
      leaves: the parameters.
      noise: one draw.
      scales: one per unit.

    Returns:
      One loss per example.
    """
    moved = list(leaves)
    at_site: dict[int, tuple[Unit, Any]] = {}
    of_leaf: dict[int, tuple[Unit, Any]] = {}
    for unit, scale in zip(layout.units, scales, strict=True):
        if unit.kind == "batch":
            leaf = leaves[unit.leaf]
            step = noise.batch[unit.start : unit.stop].reshape(leaf.shape) * scale
            moved[unit.leaf] = leaf + step.astype(leaf.dtype)
        elif unit.site is None:
            of_leaf[unit.leaf] = (unit, scale)
        else:
            at_site[unit.site] = (unit, scale)
    positions = iter(range(len(plan.sites)))

    def visit(meeting: Meeting) -> chex.Array:
        y, position = meeting.clean(), next(positions)
        unit, scale = at_site.get(position) or of_leaf.get(meeting.weight.leaf) or (None, None)
        if unit is None:  # it follows another site, whose noise is already in x
            return y
        return y + _noise_at(meeting, unit, noise.examples, scale, y).astype(y.dtype)

    return program.run(moved, plan.watched(len(moved)), visit)


def _noise_at(
    meeting: Meeting, unit: Unit, examples: chex.Array, scale: Any, y: chex.Array
) -> chex.Array:
    """What a unit adds to the output y of a site."""
    numbers = examples[:, unit.start : unit.stop]
    if unit.kind == "activation":
        return scale * numbers.reshape(y.shape)
    if unit.kind == "outer":
        r, s = factors(meeting, unit, numbers)
        return cast(Any, meeting.project)(r, s * jnp.asarray(scale, s.dtype))
    weight = meeting.weight
    steps = (scale * numbers).reshape(-1, *weight.shape)
    rows = jax.vmap(lambda step: weight.derive(step)[0])(steps)  # all rows of one are the same
    rows = jnp.repeat(rows, y.shape[0] // rows.shape[0], axis=0)
    if meeting.kind == "add":
        return jnp.broadcast_to(rows, y.shape)
    return meeting.x.array * rows.astype(meeting.x.array.dtype)


def factors(meeting: Meeting, unit: Unit, numbers: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Cuts the numbers of an `outer` unit into r and s, as signs in the dtype of the input.

    Args:
      meeting: its site.
      unit: the unit.
      numbers: its noise, shape (batch, size).
    """
    first, second, _ = meeting.shapes
    signs = jnp.sign(numbers).astype(meeting.x.array.dtype)
    middle, batch = unit.split - unit.start, len(numbers)
    return signs[:, :middle].reshape(batch, *first), signs[:, middle:].reshape(batch, *second)


def weigh(layout: Layout, noises: Noise, weights: Sequence[chex.Array]) -> list[chex.Array]:
    """Sums up noise over draws, and where it is noise on weights over examples.

    Args:
      layout: of the noise.
      noises: several draws, stacked on axis 0.
      weights: per unit, shape (draws, batch).

    Returns:
      Per unit: `activation` (batch, size), `outer` (r, s) matrix, else (size,); float32.
    """
    sums = []
    for unit, c in zip(layout.units, weights, strict=True):
        whole = noises.batch if unit.kind == "batch" else noises.examples
        xi = whole[..., unit.start : unit.stop]
        if unit.kind == "batch":
            total = jnp.einsum("k,kn->n", jnp.sum(c, axis=1), xi, precision="highest")
        elif unit.kind == "activation":
            total = jnp.sum(c[..., None] * xi, axis=0)
        elif unit.kind == "elementwise":
            total = jnp.einsum("kb,kbn->n", c, xi, precision="highest")
        else:
            signs, middle = jnp.sign(xi), unit.split - unit.start
            r, s = signs[..., :middle] * c[..., None], signs[..., middle:]
            total = jnp.einsum("kbi,kbo->io", r, s, precision="highest")
        sums.append(total)
    return sums


def local_products(
    program: Program,
    plan: Plan,
    layout: Layout,
    leaves: Sequence[chex.Array],
    sums: Sequence[chex.Array],
) -> tuple[list[chex.Array | None], chex.Array]:
    """Turns sums of weighted noise into one array per parameter, each layer by itself.

    The unperturbed program is run once for the inputs of the sites. What a site does to its weight
    is linear; its transpose is applied to the sum, and nothing goes further back than that.

    Args:
      program: the loss.
      plan: what every parameter gets.
      layout: of the noise.
      leaves: the parameters.
      sums: from `weigh`.

    Returns:
      `(per leaf an array or None, unperturbed losses)`.
    """
    meetings: list[Meeting] = []

    def visit(meeting: Meeting) -> chex.Array:
        meetings.append(meeting)
        return meeting.clean()

    losses = program.run(leaves, plan.watched(len(leaves)), visit)
    results: list[chex.Array | None] = [None] * len(leaves)
    units = {unit.site: i for i, unit in enumerate(layout.units) if unit.site is not None}

    def add(leaf: int, part: chex.Array) -> None:
        before = results[leaf]
        results[leaf] = part if before is None else before + part

    for unit, total in zip(layout.units, sums, strict=True):
        if unit.site is None:
            add(unit.leaf, total.reshape(leaves[unit.leaf].shape))
    for position, meeting in enumerate(meetings):
        site = plan.sites[position]
        number = units.get(plan.roots[position])
        if number is None:  # weights per example without a site of their own
            continue
        leaf, total = leaves[site.leaf], sums[number]
        if layout.units[number].kind == "outer":
            first, second, inverse = meeting.shapes
            total = jnp.transpose(total.reshape(*first, *second), inverse)
            add(site.leaf, _transposed(meeting.weight.derive, leaf, total))
        else:
            add(site.leaf, _transposed(_product(meeting), leaf, total.reshape(site.shape)))
    return results, losses


def _product(meeting: Meeting) -> Callable[[chex.Array], chex.Array]:
    return lambda weight: meeting.apply(meeting.weight.derive(weight))


def _transposed(function: Callable[..., Any], leaf: chex.Array, y: chex.Array) -> chex.Array:
    like = jax.eval_shape(function, leaf)
    return cast(chex.Array, jax.linear_transpose(function, leaf)(y.astype(like.dtype))[0])
