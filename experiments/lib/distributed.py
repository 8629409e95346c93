"""One run on the devices of several processes, usually on several machines."""

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Annotated

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from experiments.lib.cluster import AXIS, Cluster
from experiments.lib.errors import UserError
from experiments.lib.supervise import supervise

_HEARTBEAT_SECONDS = 30  # until JAX ends a run one of whose machines no longer answers
_LINGER_SECONDS = 1.0  # in which the others can end by themselves, see `_end_at_once`
# What JAX's errors say when another process is gone; the rest are about this process.
_LOST = ("gloo", "nccl", "connection", "socket", "peer", "coordination", "heartbeat")


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a run is computed; its result is the same, to rounding, wherever that is."""

    devices: int | None = None
    """Devices of each process that share the directions; by default 1, and with --distributed
    all."""
    distributed: bool = False
    """This is one of several processes of a run, all started with the same options. SLURM and Open
    MPI say which; elsewhere the three options below do. See docs/distributed.md."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0, with a port that is free there."""
    num_processes: int | None = None
    """How many processes the run has."""
    process_id: int | None = None
    """Which of them this is, from 0; process 0 alone writes and prints."""
    start_timeout: float = 300
    """Seconds in which all processes must have started."""

    def __post_init__(self) -> None:
        """Checks what can be checked before the processes meet."""
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"{name} needs --distributed")
        for name in ("devices", "num_processes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 < self.start_timeout < 1e6:
            raise ValueError(f"start_timeout must be > 0 and below 1e6, got {self.start_timeout}")
        if self.process_id is not None and not (
            0 <= self.process_id < (self.num_processes or self.process_id + 1)
        ):
            raise ValueError(
                "process_id must be from 0 to num_processes - 1, got "
                f"{self.process_id} with num_processes={self.num_processes}"
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(f"coordinator must be HOST:PORT, got {self.coordinator!r}")


@contextlib.contextmanager
def session(where: Where) -> Iterator[Cluster]:
    """Joins the processes of a run; to be entered before anything is computed with JAX.

    If the block fails, this process ends without waiting for the others.

    Args:
        where: The options. What they leave out JAX reads from SLURM or Open MPI.

    Raises:
        UserError: If the processes cannot be joined, or one of them is lost.
    """
    if not where.distributed:
        yield Cluster(None if where.devices in (None, 1) else _mesh(where.devices))
        return
    supervise(
        "another process of this run was lost; continue from the last checkpoint with --resume "
        "RUN_DIR in all of them"
    )
    _initialize(where)
    try:
        if jax.process_index() != 0:  # the descriptor, because Gloo writes to it too
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        cluster = Cluster(_mesh(where.devices))
        yield cluster
        cluster.leave()
    except BaseException as error:
        error = describe(error, "start all of them again")
        # JAX would wait at exit for the others, and they wait for this process.
        atexit.register(_end_at_once, _exit_code(error))
        raise error  # noqa: B904


def describe(error: BaseException, advice: str) -> BaseException:
    """Turns what JAX raises when another process is gone into a `UserError`.

    Args:
        error: Returned as it is if it is anything else.
        advice: What to do, the end of the sentence.
    """
    message = str(error).lower()
    if not isinstance(error, jax.errors.JaxRuntimeError) or not any(w in message for w in _LOST):
        return error
    return UserError(
        f"process {jax.process_index()} lost another of the {jax.process_count()} processes of "
        f"this run; {advice}"
    )


def _initialize(where: Where) -> None:
    if where.coordinator and where.process_id == 0:
        check_port(where)
    place = f" at {where.coordinator}" if where.coordinator else ""

    def give_up() -> None:
        print(
            f"error: not all processes of this run came together{place} within "
            f"{where.start_timeout:g} s",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    # JAX's own timeout aborts the process with a dump of its stack, so it is never reached.
    timer = threading.Timer(where.start_timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            where.coordinator,
            where.num_processes,
            where.process_id,
            initialization_timeout=int(where.start_timeout) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:  # nothing says where, how many or which
        raise UserError(
            "found neither SLURM nor Open MPI: give --coordinator HOST:PORT, --num-processes and "
            "--process-id"
        ) from error
    finally:
        timer.cancel()


def check_port(where: Where) -> None:
    """Checks that process 0 can listen; JAX crashes where it cannot.

    Args:
        where: The options, with a coordinator.

    Raises:
        UserError: If the port is in use or not permitted.
    """
    port = int((where.coordinator or "").rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"process 0 cannot listen on port {port} ({reason}): name another"
        ) from error


def _mesh(devices: int | None) -> Mesh:
    """The first `devices` devices of every process, in the order of the processes."""
    groups: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        groups.setdefault(device.process_index, []).append(device)
    if (least := min(map(len, groups.values()))) < (devices or 1):
        raise UserError(f"devices is {devices}, and a process has only {least}")
    chosen = [device for rank in sorted(groups) for device in groups[rank][:devices]]
    return Mesh(np.array(chosen), (AXIS,))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError | OSError) else 1


def _end_at_once(code: int) -> None:
    """Ends this process after its last words, before JAX's own exit handlers run.

    Process 0 keeps the service that the others are attached to, and JAX aborts them where it goes
    away; so it waits until they have noticed by themselves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        threading.Event().wait(_LINGER_SECONDS)
    os._exit(code)
