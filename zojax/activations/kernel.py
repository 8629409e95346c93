"""One estimate with activation noise: draws, rewards per example, layer-local products."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax import trees
from zojax.activations import noise
from zojax.activations.description import describe_plan
from zojax.activations.noise import Distribution, Layout
from zojax.activations.plan import Plan, by_path, make_plan
from zojax.activations.program import Program
from zojax.keys import noise_key
from zojax.population import Share, over_chunks
from zojax.types import Estimate, EstimateInfo, Estimator, Params, PRNGKey


class Settings(NamedTuple):
    """What `activation_noise` was asked for; see there."""

    num_draws: int | Mapping[str, int]
    sigma: Any
    antithetic: bool
    distribution: Distribution
    sites: str | Mapping[str, str]
    chunk_size: int

    @property
    def total(self) -> int:
        """Draws of one estimate."""
        given = self.num_draws
        return sum(given.values()) if isinstance(given, Mapping) else given


class Problem(NamedTuple):
    """A loss at its parameters, and what is perturbed where.

    Attributes:
      program: the loss.
      plan: the noise of every parameter.
      layout: of the noise.
      leaves: the parameters, in at least float32.
      sigmas: per unit of the layout.
      active: (draws, units) of 0 and 1: whether a unit takes part in a draw.
      groups: (draws, groups), likewise; draws of a group are centred together.
    """

    program: Program
    plan: Plan
    layout: Layout
    leaves: list[chex.Array]
    sigmas: list[Any]
    active: np.ndarray
    groups: np.ndarray


def settings_of(est: Estimator) -> Settings:
    """Returns what an estimator was made from.

    Args:
      est: from `activation_noise`.

    Raises:
      ValueError: for another estimator.
    """
    settings = est.kernel.args[0] if isinstance(est.kernel, functools.partial) else None
    if not isinstance(settings, Settings):
        raise ValueError(f"est must be made by zojax.activation_noise, got {est.name}")
    return settings


def make_problem(settings: Settings, loss: Callable[..., Any], params: Params) -> Problem:
    """Traces a loss and lays out the noise.

    Args:
      settings: of the estimator.
      loss: `params -> (batch,)`.
      params: the parameters.
    """
    wide = jax.tree.map(_widened, params)
    program = Program(loss, wide)
    plan = make_plan(program, wide, settings.sites)
    layout = noise.make_layout(plan)
    paths = [row.path for row in plan.rows.values()]
    sigma, draws = settings.sigma, settings.num_draws
    of_path = dict.fromkeys(paths, sigma)
    if isinstance(sigma, Mapping):
        of_path = by_path("sigma", sigma, paths, _missing("sigma"))
    mine = [plan.rows[unit.leaf].path for unit in layout.units]
    groups = np.ones((settings.total, 1), np.float32)
    active = np.ones((settings.total, len(mine)), np.float32)
    if isinstance(draws, Mapping):
        keys = list(draws)
        group_of = by_path("num_draws", {k: i for i, k in enumerate(keys)}, paths, lambda path: -1)
        for path in mine:
            if group_of[path] < 0:
                _missing("num_draws")(path)
        which = np.repeat(np.arange(len(keys)), list(draws.values()))
        groups = (which[:, None] == np.arange(len(keys))).astype(np.float32)
        active = groups[:, [group_of[path] for path in mine]]
    sigmas = [
        of_path[path] / plan.rows[unit.leaf].divisor
        for unit, path in zip(layout.units, mine, strict=True)
    ]
    return Problem(program, plan, layout, jax.tree.leaves(wide), sigmas, active, groups)


def _missing(name: str) -> Callable[[str], Any]:
    def fail(path: str) -> Any:
        raise ValueError(f"{name} must name every parameter (or the module it is in), not {path}")

    return fail


def _widened(leaf: Any) -> chex.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(trees.point_dtype(leaf.dtype)) if trees.is_float(leaf) else leaf


@functools.cache
def _announce(table: str) -> None:
    """Says what was chosen, each table once."""
    print(f"activation_noise(sites='auto'):\n{table}", flush=True)


def estimate(
    settings: Settings,
    loss: Callable[..., Any],
    params: Params,
    key: PRNGKey,
    size: int | None,
    share: Share,
) -> Estimate:
    """Estimates the gradient of the mean loss.

    Args:
      settings: of the estimator.
      loss: `params -> (batch,)`.
      params: the parameters.
      key: the estimate's key.
      size: draws at a time; None for those of the settings.
      share: the draws, and the part of the batch, that are this program's.
    """
    problem = make_problem(settings, loss, params)
    if settings.sites == "auto":
        _announce(str(describe_plan(problem.plan, problem.layout)))
    size = min(size or settings.chunk_size, share.length)
    run = Run(settings, problem, noise_key(key), share)
    if settings.antithetic:
        values, (sums, counts) = over_chunks(run.one_pass, share.length, size)
    else:
        values, _ = over_chunks(lambda s, c: (run.losses(s, c)[1], ()), share.length, size)
        rewards, valid = run.centred(values)
        _, (sums, counts) = over_chunks(run.second_pass(rewards, valid), share.length, size)
    products, center = noise.local_products(
        problem.program, problem.plan, problem.layout, problem.leaves, sums
    )
    grads = run.join(products, counts)
    leaves, treedef = jax.tree.flatten(params)
    cast = [
        jnp.zeros_like(leaf) if g is None else g.astype(jnp.asarray(leaf).dtype)
        for leaf, g in zip(leaves, grads, strict=True)
    ]
    value, info = run.describe(values, center.astype(values.dtype))
    return Estimate(value, jax.tree.unflatten(treedef, cast), info)


def rewards_of_pairs(values: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Half the difference of every pair, 0 where it is of no use, and where it is of use.

    Args:
      values: losses (draws, 2, batch).
    """
    rewards = (values[:, 0] - values[:, 1]) / 2
    valid = jnp.isfinite(rewards)
    return jnp.where(valid, rewards, 0), valid


class Run:
    """The parts of one estimate.

    Attributes:
      settings: of the estimator.
      problem: the loss.
      key: the noise key.
      share: the draws and examples of this program.
      batch: how many examples these are.
    """

    def __init__(self, settings: Settings, problem: Problem, key: PRNGKey, share: Share) -> None:
        """Collects the parts."""
        self.settings, self.problem, self.key, self.share = settings, problem, key, share
        self.batch = problem.program.num_examples

    def draw(self, start: Any, count: int) -> noise.Noise:
        """Noise of some draws of this share."""
        first = self.share.part * self.batch
        start = self.share.start + start

        def one(index: Any) -> noise.Noise:
            layout, distribution = self.problem.layout, self.settings.distribution
            return noise.draw(layout, distribution, self.key, index, first, self.batch)

        return jax.vmap(one)(start + jnp.arange(count))

    def table(self, table: np.ndarray, start: Any, count: int) -> chex.Array:
        """Rows of a table over all draws."""
        start = self.share.start + start
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), start, count)

    def losses(self, start: Any, count: int) -> tuple[noise.Noise, chex.Array]:
        """Losses (count, points, batch) of some draws, and their noise."""
        problem, noises = self.problem, self.draw(start, count)
        offsets = jnp.asarray([1.0, -1.0] if self.settings.antithetic else [1.0], jnp.float32)

        def at(xi: noise.Noise, active: chex.Array, offset: chex.Array) -> chex.Array:
            scales = [s * a * offset for s, a in zip(problem.sigmas, active, strict=True)]
            result = noise.perturbed(
                problem.program, problem.plan, problem.layout, problem.leaves, xi, scales
            )
            return result.astype(trees.point_dtype(result.dtype))

        active = self.table(problem.active, start, count)
        over_offsets = jax.vmap(at, (None, None, 0))
        if count == 1:  # without vmap over draws: shared noise on weights stays one array
            one = jax.tree.map(lambda x: x[0], noises)
            return noises, over_offsets(one, active[0], offsets)[None]
        return noises, jax.vmap(over_offsets, (0, 0, None))(noises, active, offsets)

    def one_pass(self, start: Any, count: int) -> tuple[chex.Array, Any]:
        """Evaluates pairs and weighs their noise while it is at hand."""
        noises, values = self.losses(start, count)
        return values, self.weigh(noises, start, *rewards_of_pairs(values))

    def centred(self, values: chex.Array) -> tuple[chex.Array, chex.Array]:
        """Losses less their mean over the draws of the same example (and group), unbiased."""
        losses = values[:, 0]
        valid = jnp.isfinite(losses)
        groups = self.table(self.problem.groups, 0, len(losses)).astype(losses.dtype)
        sums = groups.T @ jnp.where(valid, losses, 0)
        count, total = self.share.add((groups.T @ valid.astype(losses.dtype), sums))
        mean = groups @ (total / jnp.maximum(count, 1))
        factor = groups @ (count / jnp.maximum(count - 1, 1))
        valid = valid & (groups @ count > 1)
        return jnp.where(valid, (losses - mean) * factor, 0), valid

    def second_pass(self, rewards: chex.Array, valid: chex.Array) -> Callable[..., Any]:
        """Draws the noise again and weighs it by what all the losses have said."""

        def body(start: Any, count: int) -> tuple[tuple[()], Any]:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count)  # noqa: E731
            return (), self.weigh(self.draw(start, count), start, cut(rewards), cut(valid))

        return body

    def weigh(self, noises: noise.Noise, start: Any, rewards: Any, valid: Any) -> Any:
        """Sums of weighted noise, and how many rewards are in them."""
        active = self.table(self.problem.active, start, len(rewards))
        weights = [
            (rewards * active[:, u, None] / sigma).astype(jnp.float32)
            for u, sigma in enumerate(self.problem.sigmas)
        ]
        counts = active.T @ jnp.sum(valid, axis=1).astype(jnp.float32)
        return noise.weigh(self.problem.layout, noises, weights), counts

    def join(self, products: list[Any], counts: chex.Array) -> list[Any]:
        """Adds up the shares and divides by the number of rewards."""
        problem, share = self.problem, self.share
        counts = share.add_examples(share.add(counts))
        joined: list[Any] = []
        for leaf, product in enumerate(products):
            total = None if product is None else share.add_examples(share.add(product))
            if total is not None:
                count = counts[noise.unit_of_leaf(problem.plan, problem.layout, leaf)]
                total = total / jnp.maximum(count, 1).astype(total.dtype)
            joined.append(total)
        return joined

    def describe(self, values: chex.Array, center: chex.Array) -> tuple[Any, EstimateInfo]:
        """The value and what the losses (draws, points, batch) say about the estimate."""
        share = self.share
        ok, near = jnp.isfinite(values), jnp.isfinite(center)
        whole = ok & near[None, None]
        away = jnp.where(whole, values - jnp.where(near, center, 0)[None, None], 0)
        kept = jnp.where(ok, values, 0)
        steps = away[:, 0] - away[:, 1] if self.settings.antithetic else away[:, 0]
        dtype = values.dtype
        sums = [
            *(jnp.sum(x, dtype=dtype) for x in (whole, away**2, ok, kept**2, steps**2)),
            jnp.sum(~ok),
        ]
        count, spread, num, square, step, failed = share.add_examples(share.add(sums))
        of_center = share.add_examples(
            (jnp.sum(near, dtype=dtype), jnp.sum(jnp.where(near, center, 0)), jnp.sum(~near))
        )
        points = values.shape[1]
        rounding = jnp.sqrt(square / num) * float(np.finfo(dtype).eps)
        info = EstimateInfo(
            num_queries=jnp.asarray(points * self.settings.total + 1, jnp.int32),
            num_nonfinite=(failed + of_center[2]).astype(jnp.int32),
            loss_std=jnp.sqrt(spread / count),
            signal_to_noise=jnp.sqrt(step / (count / points)) / rounding,
        )
        return of_center[1] / of_center[0], info
