"""A network as a chain of stages, so that a search over single weights skips what stays the same.

`zojax.flax.linen_stages` makes the chain from a Linen `nn.Sequential`; other networks list theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.types import Params

Kind = Literal["dense", "conv", "channelwise", "flatten", "mixing"]


class Stage(NamedTuple):
    """One link of the chain.

    Attributes:
      kind: how a change of one channel, an index of the last axis, passes through. "dense" and
        "conv" are linear in it; "channelwise" leaves it in its channel (activations, pooling,
        batch normalisation with the batch's own statistics); "flatten" joins all axes but the
        first; "mixing" is anything else, and is recomputed whole.
      name: the stage's key in the parameters; None if it has none.
      apply: `(params[name] or {}, x) -> y`.
      linear: `(kernel, x) -> y` of a dense or conv stage, without its bias.
      patches: `(channel (batch, ..., 1), index, window) -> (batch, ..., 1)`, what a weight of a
        dense or conv kernel is multiplied with, from its input channel; its index is the flat one
        over the kernel's window.
    """

    kind: Kind
    name: str | None
    apply: Callable[[Params, chex.Array], chex.Array]
    linear: Any = None
    patches: Any = None


def dense(name: str) -> Stage:
    """A dense layer with parameters "kernel" (inputs, outputs) and perhaps "bias".

    Args:
      name: its key in the parameters.
    """

    def linear(kernel: chex.Array, x: chex.Array) -> chex.Array:
        return x @ kernel

    def patches(channel: chex.Array, index: chex.Array, window: tuple[int, ...]) -> chex.Array:
        del index, window  # a window of one
        return channel

    return Stage("dense", name, _with_bias(linear), linear, patches)


def conv(
    name: str,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> Stage:
    """A two-dimensional convolution of images (batch, height, width, channels).

    Parameters "kernel" (height, width, inputs, outputs) and perhaps "bias"; no groups or dilation.

    Args:
      name: its key in the parameters.
      strides: of the window.
      padding: "SAME", "VALID" or a pair per axis.
    """

    def linear(kernel: chex.Array, x: chex.Array) -> chex.Array:
        if x.shape[-1] == 1:  # on a CPU many times faster than a convolution, at any size
            rows, window = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]), kernel.shape[:2]
            return sum(patches(x, jnp.int32(i), window) * row for i, row in enumerate(rows))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    def patches(channel: chex.Array, index: chex.Array, window: tuple[int, ...]) -> chex.Array:
        pads = padding
        if isinstance(pads, str):
            pads = jax.lax.padtype_to_pads(channel.shape[1:3], window, strides, pads)
        (top, bottom), (left, right) = pads
        x = jnp.pad(channel, ((0, 0), (top, bottom), (left, right), (0, 0)))
        row, column = index // window[1], index % window[1]
        spans = [
            (n - w) // s * s + 1 for n, w, s in zip(x.shape[1:3], window, strides, strict=True)
        ]
        corner = (jnp.zeros_like(row), row, column, jnp.zeros_like(row))
        part = jax.lax.dynamic_slice(x, corner, (len(x), *spans, 1))
        return part[:, :: strides[0], :: strides[1]]

    return Stage("conv", name, _with_bias(linear), linear, patches)


def channelwise(apply: Callable[..., chex.Array], name: str | None = None) -> Stage:
    """A stage that keeps channels apart; its parameters, if any, have one entry per channel.

    Args:
      apply: `x -> y` without parameters, `(params, x) -> y` with.
      name: its key in the parameters; None if it has none.
    """
    return Stage("channelwise", name, _given(apply, name))


def mixing(apply: Callable[..., chex.Array], name: str | None = None) -> Stage:
    """Any other stage: residual blocks, attention, layer normalisation.

    Args:
      apply: `x -> y` without parameters, `(params, x) -> y` with.
      name: its key in the parameters; None if it has none.
    """
    return Stage("mixing", name, _given(apply, name))


def flatten() -> Stage:
    """Joins all axes but the first."""
    return Stage("flatten", None, lambda params, x: x.reshape(len(x), -1))


def _given(apply: Callable[..., chex.Array], name: str | None) -> Callable[..., chex.Array]:
    return apply if name is not None else lambda params, x: apply(x)


def _with_bias(linear: Callable[..., chex.Array]) -> Callable[[Params, chex.Array], chex.Array]:
    def apply(params: Params, x: chex.Array) -> chex.Array:
        y = linear(params["kernel"], x)
        return y + jnp.broadcast_to(params["bias"], y.shape) if "bias" in params else y

    return apply


def run(stages: Sequence[Stage], params: Params, x: chex.Array) -> chex.Array:
    """Returns the output of a chain.

    Args:
      stages: the chain or a part of it.
      params: of the whole network.
      x: its input, examples first.
    """
    for stage in stages:
        x = stage.apply(own(stage, params), x)
    return x


def own(stage: Stage, params: Params) -> Params:
    """The parameters of one stage."""
    return {} if stage.name is None else params[stage.name]


def check_names(stages: Sequence[Stage], params: Params) -> None:
    """Raises unless every parameter has one stage, and the reverse.

    Args:
      stages: the chain.
      params: of the network.

    Raises:
      ValueError: naming both.
    """
    names = [stage.name for stage in stages if stage.name is not None]
    if len(set(names)) < len(names) or set(names) != set(params):
        raise ValueError(f"stages name the parameters {names}, the network has {list(params)}")


def check(stages: Sequence[Stage], params: Params, x: Any) -> None:
    """Raises unless a chain fits parameters and inputs.

    Args:
      stages: the chain.
      params: of the network.
      x: inputs, or their shape and dtype.

    Raises:
      ValueError: for parameters without a stage or the reverse, or a stage that is not of its kind.
    """
    check_names(stages, params)
    for number, stage in enumerate(stages):
        given = own(stage, params)
        label = f"stage {number} ({stage.kind}, {stage.name or 'no parameters'})"
        if stage.name is not None and not jax.tree.leaves(given):
            raise ValueError(f"{label} has no weights: leave its name out")
        if stage.kind in ("dense", "conv") and not {"kernel"} <= set(given) <= {"kernel", "bias"}:
            raise ValueError(f"{label} must have a kernel and perhaps a bias, got {list(given)}")
        y = jax.eval_shape(stage.apply, given, x)
        if stage.kind == "channelwise":
            shapes = {np.shape(leaf) for leaf in jax.tree.leaves(given)}
            if y.shape[-1] != x.shape[-1] or not shapes <= {(x.shape[-1],)}:
                raise ValueError(
                    f"{label} must keep the {x.shape[-1]} channels of its input, with one entry "
                    f"for each, got an output of {y.shape[-1]} and parameters {sorted(shapes)}"
                )
        x = y
