"""Flax models as black-box losses: a Linen or NNX module and a batch in, one number out.

Only this module imports flax. In a perturbed evaluation nothing is written back: BatchNorm
normalises with the batch's own statistics, and its running averages stay what they were; all
points of a step share one dropout key, so that their losses differ by the perturbation alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
from flax import linen, nnx

from zojax import search
from zojax.search import Stage
from zojax.types import LossFn, Params, PRNGKey

Criterion = Callable[[chex.Array, Any], chex.Array]


def linen_loss(
    module: linen.Module,
    criterion: Criterion,
    *,
    collections: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> LossFn:
    """Turns a Linen module into `loss_fn(params, batch, dropout_key=None) -> scalar`.

    >>> import jax, jax.numpy as jnp, optax, zojax.flax
    >>> from flax import linen
    >>> module = linen.Dense(3)
    >>> x, labels = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> params = module.init(jax.random.key(0), x)["params"]
    >>> def criterion(logits, labels):
    ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    >>> loss_fn = zojax.flax.linen_loss(module, criterion)
    >>> float(loss_fn(params, (x, labels))) > 0
    True

    Args:
      module: the module. It is called in the mode `call_kwargs` say, so pass what your module
        needs to train, e.g. `train=True`.
      criterion: `(outputs, targets) -> scalar`; need not be differentiable.
      collections: variables other than `params`, e.g. `{"batch_stats": ...}`; constants.
      **call_kwargs: passed to the module's `__call__`.

    Returns:
      The loss; `batch` is `(inputs, targets)`. Give a fresh `dropout_key` every step through the
      loss's arguments, e.g. `args=(batch, jax.random.fold_in(key, step))`.
    """
    constants = dict(collections or {})

    def loss_fn(params: Params, batch: tuple[Any, Any], dropout_key: PRNGKey | None = None) -> Any:
        inputs, targets = batch
        outputs, _ = module.apply(
            {"params": params, **constants},
            inputs,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            mutable=list(constants),  # lets BatchNorm write statistics, which are dropped here
            **call_kwargs,
        )
        return criterion(outputs, targets)

    return loss_fn


def nnx_loss(model: nnx.Module, criterion: Criterion, **call_kwargs: Any) -> tuple[Params, LossFn]:
    """Turns an NNX model into parameters and `loss_fn(params, batch, dropout_key=None)`.

    The model itself is never changed. To get a trained model back, `nnx.update(model, params)`.

    Args:
      model: the model, in the mode it is to be evaluated in (`model.train()`).
      criterion: `(outputs, targets) -> scalar`; need not be differentiable.
      **call_kwargs: passed to the model's `__call__`.

    Returns:
      `(params, loss_fn)`: the model's `nnx.Param` state, and the loss, whose `batch` is
      `(inputs, targets)`. All random streams of the model are derived from `dropout_key`; without
      it the model's own random state is used, the same at every call.
    """
    definition, params, others = nnx.split(nnx.clone(model), nnx.Param, ...)  # type: ignore[misc]

    def loss_fn(params: Params, batch: tuple[Any, Any], dropout_key: PRNGKey | None = None) -> Any:
        inputs, targets = batch
        replica = nnx.merge(definition, params, others, copy=True)
        if dropout_key is not None:
            _reseed(replica, dropout_key)
        return criterion(replica(inputs, **call_kwargs), targets)

    return params, loss_fn


def _reseed(model: nnx.Module, key: PRNGKey) -> None:
    """Gives every random stream of `model` a key of its own, in place.

    Whatever its name: with `nnx.Rngs(0)` the streams of Dropout are called "default".
    """
    streams = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream)]
    names = sorted({stream.tag for stream in streams})
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}
    nnx.reseed(model, policy="match_shape", **keys)  # type: ignore[arg-type]


def linen_stages(
    module: linen.Sequential, variables: Mapping[str, Any], inputs: Any
) -> list[Stage]:
    """Describes an `nn.Sequential` as stages for `zojax.search.layered_rso`.

    Dense, convolutional (two-dimensional, ungrouped, undilated) and batch-normalisation layers are
    recognised; functions and layers without parameters are tried on random numbers: what treats
    every channel alone is `channelwise`, what only reshapes to (batch, -1) is `flatten`. All else
    is `mixing`: right, and recomputed whole. A network that is no `nn.Sequential` lists its stages
    itself.

    Args:
      module: the network; batch normalisation with `use_running_average=False`.
      variables: what `module.init` returned.
      inputs: an example batch, or its shape and dtype, of at least two examples.

    Raises:
      ValueError: for another module, batch normalisation with stored statistics, or a module that
        does not compute what its stages do.
    """
    if not isinstance(module, linen.Sequential):
        raise ValueError(f"linen_stages takes an nn.Sequential, got {type(module).__name__}")
    params, stages = variables["params"], []
    x = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    for number, layer in enumerate(module.layers):
        name = f"layers_{number}"
        if isinstance(layer, linen.Module):
            name = layer.name or name
        stage = _stage(layer, name if params.get(name) else None, x)
        stages.append(stage)
        x = jax.eval_shape(stage.apply, params.get(name, {}), x)
    _check_same(module, variables, stages, inputs)
    return stages


def _check_same(
    module: linen.Sequential, variables: Mapping[str, Any], stages: list[Stage], inputs: Any
) -> None:
    x = jax.numpy.ones((2, *inputs.shape[1:]), inputs.dtype)
    if jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        x = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    expected, _ = module.apply(dict(variables), x, mutable=["batch_stats"])
    found = search.stages.run(stages, variables["params"], x)
    if expected.shape != found.shape or not jax.numpy.allclose(expected, found, 1e-3, 1e-3):
        kinds = ", ".join(stage.kind for stage in stages)
        raise ValueError(f"the stages {kinds} do not compute what the module does; list your own")


_CUSTOM = ("dtype", "precision", "dot_general", "dot_general_cls", "conv_general_dilated")


def _stage(layer: Any, name: str | None, x: Any) -> Stage:
    if not isinstance(layer, linen.Module):
        return _without_parameters(layer, x)
    is_plain = all(getattr(layer, attribute, None) is None for attribute in _CUSTOM)
    if name and type(layer) is linen.Dense and is_plain:
        return search.dense(name)
    if name and type(layer) is linen.Conv and is_plain and _is_plain_conv(layer, x):
        pads: Any = linen.linear.canonicalize_padding(layer.padding, 2)
        strides: Any = layer.strides or 1
        strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
        return search.conv(name, strides=strides, padding=pads)

    def apply(params: Params, x: chex.Array) -> chex.Array:
        return layer.apply({"params": params}, x, mutable=["batch_stats"])[0]

    if name is None:
        return _without_parameters(lambda x: apply({}, x), x)
    if isinstance(layer, linen.BatchNorm) and layer.use_running_average is not False:
        raise ValueError(f"{name} must be a BatchNorm with use_running_average=False")
    is_per_channel = type(layer) is linen.BatchNorm and layer.axis == -1
    return (search.channelwise if is_per_channel else search.mixing)(apply, name)


def _is_plain_conv(layer: linen.Conv, x: Any) -> bool:
    ones = (None, 1, (1, 1), [1, 1])
    return (
        len(x.shape) == 4
        and not isinstance(layer.kernel_size, int)
        and layer.feature_group_count == 1
        and layer.mask is None
        and layer.input_dilation in ones
        and layer.kernel_dilation in ones
        and (layer.padding in ("SAME", "VALID") or not isinstance(layer.padding, str))
    )


def _without_parameters(function: Callable[..., Any], x: Any) -> Stage:
    """Tries what a function does to random numbers; one that fails on a part is `mixing`."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return search.mixing(function)
    numbers = jax.random.normal(jax.random.key(0), (2, *x.shape[1:]), x.dtype)
    whole = function(numbers)
    flat = numbers.reshape(2, -1)
    if numbers.ndim > 2 and whole.shape == flat.shape and bool((whole == flat).all()):
        return search.flatten()
    if whole.shape[-1] != x.shape[-1]:
        return search.mixing(function)
    try:
        channels = [function(numbers[..., i : i + 1]) for i in range(x.shape[-1])]
        joined = jax.numpy.concatenate(channels, axis=-1)
        is_apart = joined.shape == whole.shape and bool(jax.numpy.allclose(joined, whole))
    except Exception:  # whatever a function does that was not made for one channel
        is_apart = False
    return (search.channelwise if is_apart else search.mixing)(function)
