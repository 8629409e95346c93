"""Where a weight meets its input: which equations are sites, and what is linear in the weight."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from jax import lax

ELEMENTWISE = ("add", "mul")
_SAME_WEIGHT = ("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze")


class Weight:
    """A parameter on its way to its input.

    Attributes:
      array: its numbers as the program has them now.
      leaf: which parameter, by position.
      shape: of the parameter.
      derive: parameter -> array; only reorders, spreads or converts.
      is_spread: whether axis 0 only repeats it.
      reads: as in `Value`.
    """

    def __init__(
        self,
        array: chex.Array,
        leaf: int,
        shape: tuple[int, ...],
        derive: Callable[..., Any] = lambda weight: weight,
        is_spread: bool = False,
    ) -> None:
        """Collects the parts."""
        self.array, self.leaf, self.shape = array, leaf, shape
        self.derive, self.is_spread, self.reads = derive, is_spread, 0


class Value:
    """Anything else.

    Attributes:
      array: its numbers.
      axis: which one belongs to the examples, one block of equal length each; None if none does.
      meeting: the site whose unchanged output it is, or None.
      reads: equations that have read it.
    """

    def __init__(self, array: chex.Array, axis: int | None = None) -> None:
        """Collects the parts."""
        self.array, self.axis = array, axis
        self.meeting: Meeting | None = None
        self.reads = 0


class Meeting(NamedTuple):
    """One equation that is linear in a weight.

    Attributes:
      kind: the primitive's name.
      weight: the weight.
      x: what it meets, examples on axis 0 where `batched`.
      batched: whether the output has one block of rows per example.
      apply: derived weight -> output, linear; for `add` without the summand x.
      finish: output -> the program's layout, where that is another.
      axis: of the examples in that layout.
      project: `(r (B, *contracted), s (B, *free)) -> output` for the weights r_b outer s_b of each
        example; None where there are none of this kind.
      shapes: `contracted` and `free` of it, and the permutation that makes them the weight's axes.
    """

    kind: str
    weight: Weight
    x: Value
    batched: bool
    apply: Callable[[chex.Array], chex.Array]
    finish: Callable[[chex.Array], chex.Array] | None = None
    axis: int = 0
    project: Callable[[chex.Array, chex.Array], chex.Array] | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((), (), ())

    def clean(self) -> chex.Array:
        """The unperturbed output."""
        product = self.apply(self.weight.array)
        return self.x.array + product if self.kind == "add" else product


def is_divisible(shape: tuple[int, ...], batch: int) -> bool:
    """Whether axis 0 can be that of the examples.

    Args:
      shape: of an array.
      batch: number of examples.
    """
    return len(shape) > 0 and shape[0] > 0 and shape[0] % batch == 0


def output_axis(
    primitive: Any, params: dict[str, Any], inputs: list[Value], shape: tuple[int, ...], batch: int
) -> int | None:
    """Finds the axis of the examples in the output of an equation; None if it is not clear.

    Args:
      primitive: of the equation.
      params: its parameters.
      inputs: what it reads.
      shape: of the output.
      batch: number of examples.
    """
    axes = {x.axis for x in inputs if x.axis is not None}
    if len(axes) != 1:
        return None
    axis = axes.pop()
    if primitive.name == "transpose":
        return int(params["permutation"].index(axis))
    if primitive.name == "dot_general":
        return _axis_of_product(inputs, params["dimension_numbers"])
    if primitive.name in ("scan", "while"):  # carries and stacks: by length, where it is clear
        fitting = [i for i, length in enumerate(shape[:2]) if length == batch]
        return fitting[0] if len(fitting) == 1 else None
    if axis != 0:
        same = any(x.axis == axis and jnp.shape(x.array) == shape for x in inputs)
        return axis if same else None
    is_reduced = primitive.name.startswith(("reduce", "arg")) and 0 in params.get("axes", ())
    return 0 if not is_reduced and is_divisible(shape, batch) else None


def _axis_of_product(inputs: list[Value], numbers: Any) -> int | None:
    contracted, batched = numbers
    found, start = set(), len(batched[0])
    for x, sums, pairs in zip(inputs, contracted, batched, strict=True):
        free = [a for a in range(jnp.ndim(x.array)) if a not in (*sums, *pairs)]
        if x.axis in pairs:
            found.add(pairs.index(x.axis))
        elif x.axis is not None:
            found.add(start + free.index(x.axis) if x.axis in free else None)
        start += len(free)
    return found.pop() if len(found) == 1 else None


def derive(primitive: Any, inputs: list[Any], params: dict[str, Any]) -> Weight | None:
    """Follows a weight through what does not change its numbers; None for anything else.

    Args:
      primitive: of the equation.
      inputs: `Weight`s and `Value`s.
      params: the equation's parameters.
    """
    if len(inputs) != 1 or primitive.name not in _SAME_WEIGHT:
        return None
    new_dtype = params.get("new_dtype")
    if new_dtype is not None and not jnp.issubdtype(new_dtype, jnp.floating):
        return None
    weight, step = inputs[0], functools.partial(primitive.bind, **params)
    array = step(weight.array)
    is_spread = primitive.name == "convert_element_type" and weight.is_spread
    if primitive.name == "broadcast_in_dim" and array.ndim > 0:
        source = params["broadcast_dimensions"]
        is_spread = 0 not in source or weight.array.shape[source.index(0)] == 1
    inner = weight.derive
    return Weight(array, weight.leaf, weight.shape, lambda w: step(inner(w)), is_spread)


def meet(primitive: Any, inputs: list[Any], params: dict[str, Any], batch: int) -> Meeting | None:
    """Returns the site that an equation is, or None.

    Args:
      primitive: of the equation.
      inputs: `Weight`s and `Value`s, at least one a weight.
      params: the equation's parameters.
      batch: number of examples.
    """
    weights = [x for x in inputs if isinstance(x, Weight)]
    rule = _RULES.get(primitive.name)
    if rule is None or len(weights) != 1:
        return None
    return rule(primitive, inputs, params, batch)


def _dot(primitive: Any, inputs: list[Any], params: dict[str, Any], batch: int) -> Meeting | None:
    (left, right), (left_batch, _) = params["dimension_numbers"]
    if left_batch or params.get("out_sharding") is not None:
        return None
    is_left = isinstance(inputs[0], Weight)
    weight, x = inputs if is_left else inputs[::-1]
    w_axes, x_axes = (left, right) if is_left else (right, left)
    first = x.axis or 0  # the examples go first, and back to their place in `finish`
    order = (first, *(a for a in range(x.array.ndim) if a != first))
    if first != 0:
        x_axes = tuple(order.index(a) for a in x_axes)
        x = Value(jnp.transpose(x.array, order), 0)
    numbers = ((x_axes, w_axes), ((), ()))
    dot = functools.partial(primitive.bind, **{**params, "dimension_numbers": numbers})
    names = [order[a] for a in range(x.array.ndim) if a not in x_axes]
    num_free, num_new = len(names), weight.array.ndim - len(w_axes)
    back = [names.index(a) for a in sorted(names)]
    new = list(range(num_free, num_free + num_new))
    layout = new + back if is_left else back + new

    def finish(y: chex.Array) -> chex.Array:
        return jnp.transpose(y, layout)

    def project(r: chex.Array, s: chex.Array) -> chex.Array:
        rows = x.array.shape[0] // batch
        xs = x.array.reshape(batch, rows, *x.array.shape[1:])
        axes = tuple(a + 1 for a in x_axes)
        inner = lax.dot_general(xs, r, ((axes, tuple(range(1, r.ndim))), ((0,), (0,))))
        between = range(inner.ndim, inner.ndim + s.ndim - 1)
        outer = jnp.expand_dims(inner, tuple(between)) * jnp.expand_dims(
            s, tuple(range(1, inner.ndim))
        )
        return outer.reshape(batch * rows, *outer.shape[2:])

    batched = x.axis == 0 and 0 not in x_axes
    free = tuple(a for a in range(weight.array.ndim) if a not in w_axes)
    shape = weight.array.shape
    axes = (*w_axes, *free)
    inverse = tuple(axes.index(a) for a in range(len(axes)))
    return Meeting(
        "dot_general",
        weight,
        x,
        batched,
        lambda w: dot(x.array, w),
        None if layout == sorted(layout) else finish,
        layout.index(0) if batched else 0,
        project,
        (tuple(shape[a] for a in w_axes), tuple(shape[a] for a in free), inverse),
    )


def _conv(primitive: Any, inputs: list[Any], params: dict[str, Any], batch: int) -> Meeting | None:
    x, weight = inputs
    if isinstance(x, Weight):
        return None
    numbers = params["dimension_numbers"]
    conv = functools.partial(primitive.bind, **params)
    plain = params["feature_group_count"] == 1 and params["batch_group_count"] == 1
    out_axis, *in_axes = numbers.rhs_spec
    axes = (*in_axes, out_axis)
    inverse = tuple(axes.index(a) for a in range(len(axes)))
    shape = weight.array.shape
    return Meeting(
        "conv_general_dilated",
        weight,
        x,
        x.axis == 0 and numbers.lhs_spec[0] == 0 and numbers.out_spec[0] == 0,
        lambda w: conv(x.array, w),
        project=functools.partial(_project_conv, x.array, params, batch) if plain else None,
        shapes=(tuple(shape[a] for a in in_axes), (shape[out_axis],), inverse),
    )


def _project_conv(
    x: chex.Array, params: dict[str, Any], batch: int, r: chex.Array, s: chex.Array
) -> chex.Array:
    """Convolves each example with its own kernel r_b (in, *spatial), and spreads it over s_b.

    A sum of shifted inputs: a convolution with a kernel per example would be a grouped one, which
    is slow on a CPU.
    """
    numbers, sizes = params["dimension_numbers"], r.shape[2:]
    _, channel, *spatial = numbers.lhs_spec
    x = jnp.transpose(x, (0, channel, *spatial))
    rows = x.shape[0] // batch
    dilation = params["lhs_dilation"]
    pads = [(*pad, d - 1) for pad, d in zip(params["padding"], dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads])
    steps, strides = params["rhs_dilation"], params["window_strides"]
    spans = [n - (k - 1) * d for n, k, d in zip(x.shape[2:], sizes, steps, strict=True)]
    parts = []
    for offset in itertools.product(*map(range, sizes)):
        starts = [o * d for o, d in zip(offset, steps, strict=True)]
        stops = [a + span for a, span in zip(starts, spans, strict=True)]
        part = lax.slice(x, (0, 0, *starts), (*x.shape[:2], *stops), (1, 1, *strides))
        parts.append(part.reshape(batch, rows, *part.shape[1:]))
    patches = jnp.stack(parts, axis=3)  # (batch, rows, in, taps, *spatial)
    r = r.reshape(batch, r.shape[1], len(parts))
    total = lax.dot_general(patches, r, (((2, 3), (1, 2)), ((0,), (0,))))
    spread = jnp.expand_dims(s[:, None], tuple(range(3, total.ndim + 1)))
    y = jnp.expand_dims(total, 2) * spread  # (batch, rows, out, *spatial)
    y = y.reshape(batch * rows, *y.shape[2:])
    out = numbers.out_spec
    return jnp.transpose(y, tuple(out.index(a) for a in range(len(out))))


def _gather(
    primitive: Any, inputs: list[Any], params: dict[str, Any], batch: int
) -> Meeting | None:
    del batch
    if not isinstance(inputs[0], Weight):
        return None
    weight, indices = inputs
    numbers = params["dimension_numbers"]
    gather = functools.partial(primitive.bind, **params)
    return Meeting(
        "gather",
        weight,
        indices,
        indices.axis == 0 and 0 not in numbers.offset_dims,
        lambda w: gather(w, indices.array),
    )


def _elementwise(
    primitive: Any, inputs: list[Any], params: dict[str, Any], batch: int
) -> Meeting | None:
    del params
    weight, x = inputs if isinstance(inputs[0], Weight) else inputs[::-1]
    shape = jnp.broadcast_shapes(weight.array.shape, jnp.shape(x.array))
    if not weight.is_spread and (weight.array.ndim < len(shape) or weight.array.shape[0] != 1):
        return None
    if primitive.name == "add":
        apply = lambda w: jnp.broadcast_to(w, shape)  # noqa: E731
    else:
        apply = lambda w: x.array * w  # noqa: E731
    batched = x.axis == 0 and is_divisible(shape, batch)
    return Meeting(primitive.name, weight, x, batched and jnp.shape(x.array)[0] == shape[0], apply)


_RULES: dict[str, Callable[..., Meeting | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "add": _elementwise,
    "mul": _elementwise,
}
