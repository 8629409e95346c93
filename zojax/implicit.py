"""Low-rank perturbed weights that are never materialised.

A perturbed weight W + c A B^T is an array type of its own (a quax value): an unmodified model
multiplies by it, and the rules below push the product through to W, A and B. The product with W is
then shared by the whole population wherever its input is (`vmap` sees that W carries no population
axis), and the rest costs a few multiplications per activation.

The loss is traced once and its program is evaluated here, equation by equation, rather than by
`quax.quaxify`, which stops at `jax.custom_vjp` and at loops and branches that return a weight.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.extend
import jax.numpy as jnp
import quax
from jax import lax

logger = logging.getLogger("zojax")


class LowRankArray(quax.ArrayValue):
    """A weight plus a low-rank perturbation: base + scale * left right^T.

    Attributes:
      base: the unperturbed weight, shape (..., n), shared by all points.
      left: factor of shape (..., r), the leading axes those of `base`.
      right: factor of shape (n, r).
      scale: shape (): sigma / sqrt(r) times the stencil's offset. A field of its own, so that the
        two points of a pair share products with the factors; float32 or wider always, or a model
        in half precision would round sigma itself.
    """

    base: chex.Array
    left: chex.Array
    right: chex.Array
    scale: chex.Array

    def aval(self) -> Any:
        """The shape and dtype the model sees."""
        return jax.typeof(self.base)

    def materialise(self) -> chex.Array:
        """Returns the weight as an ordinary array."""
        return self.plus(jnp.matmul(self.left, self.right.T, precision="highest"), self.base)

    def plus(self, perturbation: chex.Array, shared: chex.Array) -> chex.Array:
        """Returns shared + scale * perturbation, in the dtype of `shared`."""
        return shared + (self.scale * perturbation.astype(self.scale.dtype)).astype(shared.dtype)

    def plus_outer(
        self, coefficients: chex.Array, factor: chex.Array, shared: chex.Array
    ) -> chex.Array:
        """Returns shared + scale * coefficients factor^T, (..., r) times (n, r), likewise."""
        scaled = self.scale * coefficients.astype(self.scale.dtype)
        return shared + _expand(scaled, factor).astype(shared.dtype)

    @staticmethod
    def default(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> Any:
        """Applies the rule for a primitive; without one, materialises and says so once."""
        rule = _RULES.get(primitive.name)
        result = None if rule is None else rule(*values, **params)
        if result is not None:
            return result
        result = primitive.bind(*materialise(list(values)), **params)
        for value in filter(_is_implicit, values):
            # What is spread over activations costs no more than they do: biases, positions.
            if not (primitive.name in _ELEMENTWISE and result.size > value.size):
                _report(primitive.name, value.shape)
        return result


def _is_implicit(x: Any) -> bool:
    return isinstance(x, LowRankArray)


def materialise(tree: Any) -> Any:
    """Turns implicit leaves into ordinary arrays.

    Args:
      tree: a pytree, e.g. a point of an estimator.
    """
    return jax.tree.map(
        lambda x: x.materialise() if _is_implicit(x) else x, tree, is_leaf=_is_implicit
    )


def call(function: Callable[..., Any], params: Any, *args: Any) -> Any:
    """Calls `function(params, *args)`, interpreting implicit leaves if there are any.

    Args:
      function: an ordinary JAX function.
      params: a pytree that may hold implicit leaves.
      *args: further arguments.

    Returns:
      The result, of ordinary arrays.
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=_is_implicit)
    weights = [leaf for leaf in leaves if _is_implicit(leaf)]
    if not weights:
        return function(params, *args)
    others: list[Any] = []  # what the function returns besides arrays, and the structure of it all

    def of_weights(*arrays: chex.Array) -> list[chex.Array]:
        stand_ins = iter(arrays)
        filled = [next(stand_ins) if _is_implicit(leaf) else leaf for leaf in leaves]
        results, structure = jax.tree.flatten(function(jax.tree.unflatten(treedef, filled), *args))
        others[:] = structure, [None if isinstance(x, jax.Array) else x for x in results]
        return [x for x in results if isinstance(x, jax.Array)]

    program = jax.make_jaxpr(of_weights)(*(weight.base for weight in weights))
    outputs = iter(materialise(_evaluate(program, weights)))
    structure, rest = others
    return jax.tree.unflatten(structure, [next(outputs) if x is None else x for x in rest])


def _evaluate(program: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr, open or closed, whose arguments may be implicit."""
    jaxpr = getattr(program, "jaxpr", program)
    known = dict(zip(jaxpr.constvars, getattr(program, "consts", ()), strict=True))
    known.update(zip(jaxpr.invars, values, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax.extend.core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        primitive, inputs = equation.primitive, [read(v) for v in equation.invars]
        if any(map(_is_implicit, inputs)):
            outputs = LowRankArray.default(primitive, inputs, equation.params)
        else:
            bound = primitive.get_bind_params(equation.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # oldest JAX
            outputs = primitive.bind(*functions, *inputs, **params)
        outputs = outputs if primitive.multiple_results else [outputs]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


@functools.cache
def _report(primitive: str, shape: tuple[int, ...]) -> None:
    logger.warning(
        "zojax: a low-rank perturbed weight of shape %s is materialised by %s, which has no rule; "
        "the result is the same, only slower",
        shape,
        primitive,
    )


@jax.custom_batching.custom_vmap
def _project(x: chex.Array, factor: chex.Array) -> chex.Array:
    """(..., m), (m, r) -> (..., r).

    Under `vmap` over both, a product and a sum: XLA's batched matrix-vector products are slow.
    """
    return x @ factor


@_project.def_vmap
def _project_batched(axis_size: int, batched: Any, x: Any, factor: Any) -> tuple[chex.Array, bool]:
    del axis_size
    x_batched, factor_batched = batched
    if not factor_batched:
        return _project(x, factor), True
    if not x_batched:
        # (..., m) x (n, m, r): one matrix product for the whole population.
        return jnp.einsum("...m,nmr->n...r", x, factor), True
    return _multiply_sum(x, factor), True


def _multiply_sum(x: chex.Array, factor: chex.Array) -> chex.Array:
    """(n, ..., m), (n, m, r) -> (n, ..., r)."""
    between = range(1, x.ndim - 1)
    columns = [jnp.expand_dims(factor[..., k], between) for k in range(factor.shape[-1])]
    return jnp.stack([jnp.sum(x * column, axis=-1) for column in columns], axis=-1)


def _expand(coefficients: chex.Array, factor: chex.Array) -> chex.Array:
    """(..., r), (n, r) -> (..., n), as products that fuse with what surrounds them."""
    leading = range(coefficients.ndim - 1)
    rows = [jnp.expand_dims(row, leading) for row in factor.T]
    return sum(coefficients[..., k, None] * row for k, row in enumerate(rows))


def _dot_general(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    if params.get("out_sharding") is not None:
        return None
    if _is_implicit(lhs):
        if _is_implicit(rhs):
            return None
        swapped = ((rhs_contract, lhs_contract), (rhs_batch, lhs_batch))
        result = _dot_general(rhs, lhs, dimension_numbers=swapped, **params)
        if result is None:
            return None
        batch, free = len(lhs_batch), lhs.ndim - len(lhs_contract) - len(lhs_batch)
        return jnp.moveaxis(
            result, range(result.ndim - free, result.ndim), range(batch, batch + free)
        )
    weight, x, last = rhs, lhs, rhs.ndim - 1
    if last in rhs_batch:
        return None
    shared = lax.dot_general(x, weight.base, dimension_numbers, **params)
    if last not in rhs_contract:
        inner = _contract(x, weight.left, dimension_numbers)
        return weight.plus_outer(inner, weight.right, shared)
    # Contract the last axis with the right factor first, which leaves the rank in its place.
    axis = lhs_contract[rhs_contract.index(last)]
    inner = _project(jnp.moveaxis(x, axis, -1), weight.right)
    if rhs_batch or len(rhs_contract) > 1:
        inner = jnp.moveaxis(inner, -1, axis)
        return weight.plus(lax.dot_general(inner, weight.left, dimension_numbers), shared)
    outer = _expand(inner, weight.left.reshape(-1, weight.left.shape[-1]))
    return weight.plus(outer.reshape(*inner.shape[:-1], *weight.shape[:-1]), shared)


def _contract(x: chex.Array, left: chex.Array, dimension_numbers: Any) -> chex.Array:
    """Contracts x with the left factor: batch axes, free axes of x, free axes of left, rank."""
    (x_axes, left_axes), (batch, _) = dimension_numbers
    if batch or len(left_axes) < left.ndim - 1:
        return lax.dot_general(x, left, dimension_numbers)
    order = sorted(range(len(left_axes)), key=lambda i: left_axes[i])
    count = len(order)
    x = jnp.moveaxis(x, [x_axes[i] for i in order], range(x.ndim - count, x.ndim))
    flat = x.reshape(*x.shape[: x.ndim - count], math.prod(x.shape[x.ndim - count :]))
    return _project(flat, left.reshape(-1, left.shape[-1]))


def _conv(x: Any, kernel: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    if _is_implicit(x) or grouped or dimension_numbers.rhs_spec[0] != kernel.ndim - 1:
        return None
    conv = functools.partial(
        lax.conv_general_dilated_p.bind, dimension_numbers=dimension_numbers, **params
    )
    channel = dimension_numbers.out_spec[1]
    inner = jnp.moveaxis(conv(x, kernel.left), channel, -1)
    outer = jnp.moveaxis(_expand(inner, kernel.right), -1, channel)
    return kernel.plus(outer, conv(x, kernel.base))


def _gather(operand: Any, indices: Any, *, slice_sizes: Any, **params: Any) -> Any:
    numbers, last = params["dimension_numbers"], operand.ndim - 1
    whole = slice_sizes[last] == operand.shape[last]
    # The last axis must come through untouched and stay last.
    if not whole or last in numbers.collapsed_slice_dims or last in numbers.start_index_map:
        return None
    fill = params.get("fill_value")
    if fill is not None and not math.isnan(fill):  # rows out of bounds: only NaN stays what it is
        return None
    gather = functools.partial(lax.gather_p.bind, **params)
    rows = gather(operand.base, indices, slice_sizes=tuple(slice_sizes))
    if not numbers.offset_dims or numbers.offset_dims[-1] != rows.ndim - 1:
        return None
    rank = operand.right.shape[1]
    inner = gather(operand.left, indices, slice_sizes=(*slice_sizes[:-1], rank))
    return operand.plus_outer(inner, operand.right, rows)


def _convert_element_type(weight: Any, *, new_dtype: Any, **params: Any) -> Any:
    del params
    if not jnp.issubdtype(new_dtype, jnp.floating):
        return None
    base, left, right = (x.astype(new_dtype) for x in (weight.base, weight.left, weight.right))
    return LowRankArray(base, left, right, weight.scale)


def _reshape(weight: Any, *, new_sizes: Any, dimensions: Any, **params: Any) -> Any:
    del params
    if dimensions is not None or len(new_sizes) < 2 or new_sizes[-1] != weight.shape[-1]:
        return None
    left = weight.left.reshape(*new_sizes[:-1], weight.left.shape[-1])
    return LowRankArray(weight.base.reshape(new_sizes), left, weight.right, weight.scale)


def _broadcast_in_dim(weight: Any, *, shape: Any, **params: Any) -> Any:
    """Only new axes of length one: the weight itself, in another shape."""
    del params
    is_reshape = math.prod(shape) == weight.size
    return _reshape(weight, new_sizes=shape, dimensions=None) if is_reshape else None


def _transpose(weight: Any, *, permutation: Any) -> Any:
    base = jnp.transpose(weight.base, permutation)
    if tuple(permutation) == (1, 0):
        return LowRankArray(base, weight.right, weight.left, weight.scale)
    if permutation[-1] != weight.ndim - 1:
        return None
    return LowRankArray(base, jnp.transpose(weight.left, permutation), weight.right, weight.scale)


def _inline(*values: Any, **params: Any) -> Any:
    """Functions with a name, a custom derivative or rematerialisation: no derivative is taken."""
    return _evaluate(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"], values)


def _scan(*values: Any, jaxpr: Any, length: int, reverse: bool, unroll: Any, **params: Any) -> Any:
    """Slices stacked weights layer by layer; loop-invariant ones stay as they are."""
    # How constants, carry and slices are told apart in `params` depends on the version of JAX;
    # their shapes say it too: slices and stacked results have one more axis outside the loop.
    params = dict(params, jaxpr=jaxpr, length=length, reverse=reverse, unroll=unroll)
    inside = jaxpr.in_avals
    shapes = [getattr(x, "shape", ()) for x in values]
    structs = [jax.ShapeDtypeStruct(s, a.dtype) for s, a in zip(shapes, inside, strict=True)]
    results = jax.eval_shape(lambda *xs: lax.scan_p.bind(*xs, **params), *structs)
    num_carry = sum(a.shape == b.shape for a, b in zip(results, jaxpr.out_avals, strict=True))
    first_slice = sum(s == a.shape for s, a in zip(shapes, inside, strict=True))
    constants = values[: first_slice - num_carry]
    carry = materialise(list(values[first_slice - num_carry : first_slice]))
    stacked = values[first_slice:]
    # The right factor belongs to all layers; a slice of a stack of vectors is an ordinary vector.
    slices = [(x.base, x.left) if _is_implicit(x) else x for x in stacked]

    def body(carry: Any, slices: Any) -> Any:
        current = [
            LowRankArray(x[0], x[1], whole.right, whole.scale) if _is_implicit(whole) else x
            for x, whole in zip(slices, stacked, strict=True)
        ]
        current = [materialise(x) if _is_implicit(x) and x.ndim < 2 else x for x in current]
        outputs = materialise(_evaluate(jaxpr, (*constants, *carry, *current)))
        return outputs[:num_carry], outputs[num_carry:]

    carry, outputs = lax.scan(body, carry, slices, length, reverse, unroll)
    return [*carry, *outputs]


def _while(
    *values: Any, cond_nconsts: int, cond_jaxpr: Any, body_nconsts: int, body_jaxpr: Any
) -> Any:
    bound, start = values[:cond_nconsts], cond_nconsts + body_nconsts
    constants = values[cond_nconsts:start]
    return lax.while_loop(
        lambda carry: _evaluate(cond_jaxpr, (*bound, *carry))[0],
        lambda carry: materialise(_evaluate(body_jaxpr, (*constants, *carry))),
        materialise(list(values[start:])),
    )


def _cond(index: Any, *values: Any, branches: Any, **params: Any) -> Any:
    if params.get("branches_platforms") is not None:
        return None
    run = [lambda *xs, branch=branch: materialise(_evaluate(branch, xs)) for branch in branches]
    return lax.switch(index, run, *values)


_RULES: dict[str, Callable[..., Any]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "convert_element_type": _convert_element_type,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"), _inline),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _inline),
}
"""By primitive name. A rule that returns None leaves it to materialising."""

_ELEMENTWISE = ("broadcast_in_dim", "add", "sub", "mul", "div")
