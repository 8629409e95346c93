"""Checkpoints that keep every bit and survive a killed process."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.errors import UserError

PyTree = Any

_OVERHEAD = 100_000  # Bytes for Orbax's own files.


class CheckpointStore:
    """The newest checkpoints of a run, one folder per step.

    Orbax writes a step into a temporary folder and renames it when it is complete, so a process
    killed while saving leaves the checkpoint before. Nothing is pickled. A digest of all leaves is
    stored beside them, since flipped bits in an array would otherwise be restored in silence.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        """Opens the store, and removes what an interrupted save left.

        Args:
            directory: Made if it is not there.
            keep: How many checkpoints to keep; older ones are deleted.
        """
        import orbax.checkpoint as ocp  # Here because the import is slow.

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # What matters is raised.
        self._ocp = ocp
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(n=keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                **self._alone(),
            ),
        )

    def _alone(self) -> dict[str, Any]:
        # Where a run has several processes, one of them opens the store, and waits for no other.
        if jax.process_count() == 1:
            return {}
        rank = jax.process_index()
        options = self._ocp.options.MultiprocessingOptions(
            primary_host=rank, active_processes={rank}, barrier_sync_key_prefix="zojax"
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        return {"multiprocessing_options": options, "create": False}

    def save(self, step: int, tree: PyTree) -> None:
        """Saves a tree of arrays, typed keys and Python numbers; a step saved before is kept.

        Raises:
            UserError: If the disk is full or cannot be written.
        """
        if step == self.latest():
            return
        leaves = jax.tree.map(encode, tree)
        content = {"digest": _digest(leaves), "tree": leaves}
        self._check_free_space(leaves)
        try:
            self._manager.save(step, args=self._ocp.args.StandardSave(content), force=True)
        except Exception as error:
            if not _is_disk_error(error):
                raise
            raise UserError(
                f"cannot save a checkpoint in {self._directory} ({_first_line(error)}); "
                "free some space or permit writing there, then resume from the checkpoint before"
            ) from error

    def _check_free_space(self, leaves: PyTree) -> None:
        # Orbax writes everything twice before it renames. Asking first is kinder than failing in
        # the middle, where its threads print tracebacks of their own.
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(leaves)) + _OVERHEAD
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise UserError(
                f"a checkpoint needs {needed / 1e6:.1f} MB in {self._directory} and only "
                f"{free / 1e6:.1f} MB are free; free some space, then resume from the one before"
            )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Restores exactly what was saved.

        Args:
            step: Which checkpoint, usually `latest()`.
            like: A tree of the same structure, types and shapes; its values do not matter.

        Raises:
            UserError: If the checkpoint is damaged or does not fit `like`.
        """
        expected = jax.tree.map(encode, like)
        target = {"digest": _digest(expected), "tree": expected}
        try:
            content = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
            if not np.array_equal(content["digest"], _digest(content["tree"])):
                raise ValueError("the stored arrays do not match their digest")
            return jax.tree.map(decode, content["tree"], like)
        except Exception as error:  # Damage arrives as any of a dozen types.
            raise UserError(
                f"the checkpoint {self._directory / str(step)} is damaged or of another "
                f"configuration ({_first_line(error)}); delete that folder to resume from the "
                "checkpoint before it, if there is one"
            ) from error


def encode(leaf: Any) -> np.ndarray:
    """Turns an array, a typed key or a Python number into an array on the host."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def decode(stored: np.ndarray, like: Any) -> Any:
    """Turns what `encode` made into the kind of leaf that `like` is, on the same devices."""
    expected = encode(like)
    if stored.shape != expected.shape or stored.dtype != expected.dtype:
        raise ValueError(f"found {stored.dtype}{stored.shape} for {expected.dtype}{expected.shape}")
    if not isinstance(like, jax.Array):
        return stored if isinstance(like, np.ndarray) else type(like)(stored.item())
    if is_key(like):
        array = jax.random.wrap_key_data(stored, impl=jax.random.key_impl(like))
    else:
        array = jax.numpy.asarray(stored)
    # An array that was free to move stays so: committing it would make jit compile again.
    return jax.device_put(array, like.sharding) if like.committed else array


def is_key(leaf: Any) -> bool:
    """Returns whether `leaf` is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _digest(tree: PyTree) -> np.ndarray:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _is_disk_error(error: Exception) -> bool:
    # Below Orbax a full disk is a ValueError whose message starts with a status code.
    codes = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")
    return isinstance(error, OSError) or str(error).startswith(codes)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
