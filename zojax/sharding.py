"""An estimate spread over devices: each evaluates its share of the directions."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from zojax.errors import check_at_least
from zojax.population import Share, run_population, zeros_like
from zojax.types import Estimator, Evaluations, Execution, Params, PRNGKey, State

_reshard = jax.reshard if hasattr(jax, "reshard") else jax.sharding.reshard  # JAX before 0.8


def sharded(
    mesh: Mesh | AbstractMesh | None,
    axis_name: str = "directions",
    chunk_size: int | None = None,
    *,
    batch_axis: str | None = None,
) -> Execution:
    """Spreads the directions of an estimate over the devices of a mesh axis.

    Every device holds the parameters, draws and evaluates n / (number of devices) directions with
    all their points, and adds them up; the sum is then added over devices. Directions are indexed
    globally, so they are bit for bit those of one device. What crosses devices in a step is one
    sum of the size of the gradient and the losses (8 bytes per direction for `central` in
    float32). The result is replicated.

    With a mesh this is `jax.shard_map`, whether the mesh's axes are Auto or Explicit. Without one
    it runs inside your own `jax.shard_map` or `jax.pmap` over the axis `axis_name`; parameters,
    key and state must then be the same on all devices of that axis, and the loss may not contain
    collectives over it.

    Args:
      mesh: a mesh with the axis `axis_name`, e.g. `jax.make_mesh((8,), ("directions",))`; None
        inside your own parallel code.
      axis_name: the axis that the directions are spread over.
      chunk_size: directions per device that are evaluated at once; None for all of its share. A
        chunk of one runs without `vmap`.
      batch_axis: a second axis over which the examples are spread: every array in `args` (with at
        least one axis) is split along its leading axis, and the losses are averaged, so the loss
        must be a mean over examples. Without a mesh the caller has split them. Two devices then
        make one evaluation of half the examples each. For `zojax.estimate` and
        `zojax.value_and_grad`: the links of an optax chain have no `args`.

    Returns:
      The execution.

    Raises:
      ValueError: for a mesh without these axes, or with others of more than one device, which
        could only repeat the work; for `chunk_size` < 1; when used, if the number of directions
        (or of examples) is not divisible by the number of devices, if `axis_name` is not an axis
        of the surrounding code, or if `has_aux` meets `batch_axis`.
    """
    if chunk_size is not None:
        check_at_least("chunk_size", chunk_size, 1)
    if mesh is not None:
        _check_mesh(mesh, axis_name, batch_axis)
    where = "" if mesh is None else f" over {mesh.shape[axis_name]} devices"
    return Execution(
        f"sharded({axis_name!r}, chunk_size={chunk_size}){where}",
        _runner(mesh, axis_name, chunk_size, batch_axis),
    )


def _check_mesh(mesh: Any, axis_name: str, batch_axis: str | None) -> None:
    if not isinstance(mesh, (Mesh, AbstractMesh)):
        raise ValueError(f"mesh must be a jax.sharding.Mesh or None, got {mesh!r}")
    if axis_name == batch_axis:
        raise ValueError(f"batch_axis must be another axis than axis_name, got {batch_axis!r}")
    for name, axis in (("axis_name", axis_name), ("batch_axis", batch_axis)):
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"{name} must be an axis of the mesh, {mesh.axis_names}, got {axis!r}")
    for other, size in mesh.shape.items():
        if other not in (axis_name, batch_axis) and size > 1:
            raise ValueError(
                f"mesh axis {other!r} of size {size} would only repeat the work: name it as "
                "batch_axis or make a mesh without it"
            )


@functools.cache  # equal executions are the same static argument: eager calls do not recompile
def _runner(
    mesh: Mesh | AbstractMesh | None, axis_name: str, size: int | None, batch_axis: str | None
) -> Callable[..., Evaluations]:
    def run(
        est: Estimator,
        loss: Callable[..., Any],
        params: Params,
        key: PRNGKey,
        state: State,
        args: tuple[Any, ...],
        has_aux: bool,
    ) -> Evaluations:
        if has_aux and batch_axis is not None:
            raise ValueError("has_aux does not go with batch_axis: its parts cannot be joined")

        def on_device(
            params: Params, key: PRNGKey, state: State, args: tuple[Any, ...]
        ) -> Evaluations:
            share = _share(est, params, axis_name, batch_axis)
            at = lambda p: loss(p, *args)  # noqa: E731
            return run_population(est, at, params, key, state, has_aux, size=size, share=share)

        if mesh is None:
            return on_device(params, key, state, args)
        split = jax.tree.map(lambda x: _split_of(x, mesh, batch_axis), args)
        if batch_axis is not None and all(s == PartitionSpec() for s in jax.tree.leaves(split)):
            raise ValueError(
                f"batch_axis={batch_axis!r} splits the arrays in args, and there are none: pass "
                "the batch as args of zojax.estimate or zojax.value_and_grad, not by closure (as "
                "the value_fn of an optax link does)"
            )
        if AxisType.Explicit in mesh.axis_types:  # where `shard_map` insists on what it is told
            args = jax.tree.map(lambda x, s: _reshard(x, NamedSharding(mesh, s)), args, split)
        replicated = PartitionSpec()
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(replicated, replicated, replicated, split),
            out_specs=replicated,
            check_vma=False,  # a user's loss need not know which axes its values vary over
        )(params, key, state, args)

    return run


def _split_of(x: Any, mesh: Mesh | AbstractMesh, batch_axis: str | None) -> PartitionSpec:
    if batch_axis is None or np.ndim(x) == 0:
        return PartitionSpec()
    if np.shape(x)[0] % mesh.shape[batch_axis] != 0:
        raise ValueError(
            f"the leading axis of every array in args must be divisible by the "
            f"{mesh.shape[batch_axis]} devices of batch_axis={batch_axis!r}, got shape "
            f"{np.shape(x)}"
        )
    return PartitionSpec(batch_axis)


def _share(est: Estimator, params: Params, axis_name: str, batch_axis: str | None) -> Share:
    """What this device does, and the collectives that join it with the others."""
    n, num_devices = est.num_directions(params), _axis_size(axis_name)
    if n % num_devices != 0:
        raise ValueError(
            f"num_directions must be divisible by the {num_devices} devices of axis "
            f"{axis_name!r}, got {n}"
        )
    length = n // num_devices
    index = jax.lax.axis_index(axis_name)
    start = index * length

    def gather(values: chex.Array) -> chex.Array:
        # A sum of shares in their places: unlike `all_gather`, known to be the same everywhere.
        places = jnp.zeros((n, *values.shape[1:]), values.dtype)
        places = jax.lax.dynamic_update_slice_in_dim(places, values, start, axis=0)
        return jax.lax.psum(places, axis_name)

    def once(function: Callable[[], Any]) -> Any:
        shapes = jax.eval_shape(function)
        if any(
            jax.dtypes.issubdtype(s.dtype, jax.dtypes.prng_key) for s in jax.tree.leaves(shapes)
        ):
            raise ValueError("aux must not contain keys here: return jax.random.key_data(key)")
        idle = lambda: jax.tree.map(zeros_like, shapes)  # noqa: E731
        result = jax.lax.cond(index == 0, function, idle)
        return jax.tree.map(lambda x, s: jax.lax.psum(x, axis_name).astype(s.dtype), result, shapes)

    return Share(
        start=start,
        length=length,
        gather=gather,
        add=lambda tree: jax.lax.psum(tree, axis_name),
        average=(lambda x: x) if batch_axis is None else lambda x: jax.lax.pmean(x, batch_axis),
        add_examples=(lambda x: x) if batch_axis is None else lambda x: jax.lax.psum(x, batch_axis),
        part=0 if batch_axis is None else jax.lax.axis_index(batch_axis),
        once=once,
    )


def _axis_size(axis_name: str) -> int:
    try:
        return int(jax.lax.psum(1, axis_name))
    except NameError as error:
        raise ValueError(
            f"axis_name={axis_name!r} is not an axis here: give sharded a mesh, or call it inside "
            "jax.shard_map or jax.pmap over that axis"
        ) from error
