"""The devices that a run is spread over: those of one process, or of several."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import zojax
from experiments.lib import checkpoint
from experiments.lib.errors import UserError

PyTree = Any

AXIS = "directions"
_BLOCK = 1024  # bytes; broadcasts are padded to it, so that few sizes are compiled


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes and devices of a run; `Cluster()` is one process on its first device.

    Process 0 alone writes and prints. Methods that talk to the others must be called by all.

    Attributes:
        mesh: All devices that share the directions; None for one device.
    """

    mesh: Mesh | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.mesh is None or jax.process_index() == 0

    def execution(self, chunk: int) -> zojax.Execution:
        """Returns how an estimate is evaluated.

        Args:
            chunk: Directions per device evaluated at once; 0 for all.
        """
        if self.mesh is not None:
            return zojax.sharded(self.mesh, AXIS, chunk_size=chunk or None)
        return zojax.chunked(chunk) if chunk else zojax.vectorized()

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts arrays and typed keys, the same in every process, on all devices of the mesh."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def place(leaf: jax.Array) -> jax.Array:
            value = checkpoint.encode(leaf)
            array = jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
            if not checkpoint.is_key(leaf):
                return array
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))

        return jax.tree.map(place, tree)

    def fetch(self, tree: PyTree) -> PyTree:
        """Copies replicated arrays to this process alone, which can then use them by itself."""
        if self.mesh is None:
            return tree

        def copy(leaf: jax.Array) -> jax.Array:
            value = jax.numpy.asarray(checkpoint.encode(leaf))
            if not checkpoint.is_key(leaf):
                return value
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))

        return jax.tree.map(copy, tree)

    def agree(self, value: Any) -> Any:
        """Returns what process 0 passes, a JSON value."""
        if jax.process_count() == 1:
            return value
        return json.loads(self._broadcast(json.dumps(value).encode()))

    def agree_on_arrays(self, tree: PyTree) -> PyTree:
        """Returns what process 0 passes, bit for bit: a tree of arrays, typed keys and numbers.

        Args:
            tree: The same structure, types and shapes in every process.
        """
        if jax.process_count() == 1:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        encoded = [checkpoint.encode(leaf) for leaf in leaves]
        content = self._broadcast(b"".join(leaf.tobytes() for leaf in encoded))
        received, start = [], 0
        for leaf, like in zip(encoded, leaves, strict=True):
            part = np.frombuffer(content, leaf.dtype, leaf.size, start).reshape(leaf.shape)
            received.append(checkpoint.decode(part, like))
            start += leaf.nbytes
        return structure.unflatten(received)

    def check_same(self, tree: PyTree, what: str) -> None:
        """Checks that every process has the arrays of process 0.

        Args:
            tree: The arrays.
            what: The subject of the error's sentence.

        Raises:
            UserError: In a process that has others.
        """
        if jax.process_count() == 1:
            return
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(tree):
            digest.update(leaf.tobytes())
        if self.agree(digest.hexdigest()) != digest.hexdigest():
            raise UserError(
                f"{what} differ between process 0 and process {jax.process_index()}: give both "
                "machines the same"
            )

    def _broadcast(self, content: bytes) -> bytes:
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        buffer = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
        if jax.process_index() == 0:
            buffer[:size] = np.frombuffer(content, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size].tobytes()

    def leave(self) -> None:
        """Waits for the other processes and parts from them: no later failure of theirs matters."""
        if self.mesh is not None:
            jax.distributed.shutdown()  # does nothing where there is nothing to shut down
