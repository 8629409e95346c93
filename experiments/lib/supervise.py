"""A parent that turns a crash below Python into one sentence."""

import os
import signal
import sys
import threading
from typing import Any


def supervise(message: str) -> None:
    """Goes on in a child process, while the parent waits for its end.

    When one process of a run is lost, the libraries below the others may abort them (JAX when the
    coordinator is gone or somebody has been silent for too long, Gloo when data stop in the
    middle), and no Python code runs after that. The parent says in one sentence what happened.
    Neither outlives the other. Call it before threads start; without `os.fork` it does nothing.

    Args:
        message: What to say when the child was aborted.
    """
    if not hasattr(os, "fork"):
        return
    alive, parent_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_end)
        threading.Thread(target=_follow, args=(alive,), daemon=True).start()
        return

    def forward(number: int, _: Any) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, forward)
    os.close(alive)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGABRT:
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = 2
    elif code < 0:
        print(f"error: killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
        code = 128 - code
    os._exit(code)


def _follow(alive: int) -> None:
    os.read(alive, 1)  # returns when the parent is gone, and the pipe with it
    os._exit(1)
