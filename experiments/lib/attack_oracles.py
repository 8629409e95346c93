"""What is attacked: a function by its name, images from a file, and an oracle around them."""

import importlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.lib.data import Split
from experiments.lib.errors import UserError
from zojax import blackbox

AnswersName = Literal["scores", "labels"]
Function = Callable[[np.ndarray], Any]


class Limits(NamedTuple):
    """How a function may be called; see `zojax.blackbox.score_oracle`.

    Attributes:
      answers: what it returns.
      num_classes: None if the first answer shall say.
      batch_size: rows per call, None for all at once.
      timeout: seconds per call, None for ever.
      retries: further attempts for rows without an answer.
      min_interval: seconds between the starts of two calls.
    """

    answers: AnswersName = "scores"
    num_classes: int | None = None
    batch_size: int | None = None
    timeout: float | None = None
    retries: int = 0
    min_interval: float = 0.0


class Timed:
    """A function that knows how many rows it received and how long it took.

    Attributes:
        rows: Received so far.
        seconds: Spent inside so far.
        listener: Called after every batch.
    """

    def __init__(self, function: Function) -> None:
        """Starts both at zero.

        Args:
            function: Of a batch.
        """
        self._function = function
        self.rows = 0
        self.seconds = 0.0
        self.listener: Callable[[], None] | None = None

    def __call__(self, batch: np.ndarray) -> Any:
        """Passes the batch on."""
        began = time.perf_counter()
        self.rows += len(batch)
        try:
            # A JAX result is only computed when it is read.
            value = self._function(batch)
            return value if hasattr(value, "detach") else np.asarray(value)
        finally:
            self.seconds += time.perf_counter() - began
            if self.listener is not None:
                self.listener()


def build_oracle(function: Function, limits: Limits, budget: int | None) -> blackbox.Oracle:
    """Returns a fresh oracle.

    Args:
        function: Of a batch.
        limits: How it may be called.
        budget: Queries per image.
    """
    build = blackbox.score_oracle if limits.answers == "scores" else blackbox.label_oracle
    return build(
        function,
        budget=budget,
        batch_size=limits.batch_size,
        timeout=limits.timeout,
        retries=limits.retries,
        min_interval=limits.min_interval,
        num_classes=limits.num_classes,
    )


def import_function(name: str) -> Function:
    """Imports `package.module:function`.

    Args:
        name: Where the function is.

    Raises:
        UserError: If there is no such function; nothing is called.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"--oracle must be package.module:function, got '{name}'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Whatever the user's module raises.
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--oracle {name}: cannot import the module '{module_name}' ({reason})"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise UserError(f"--oracle {name}: '{module_name}' has no '{function_name}'")
    if not callable(function):
        raise UserError(f"--oracle {name}: '{function_name}' is not callable")
    return function


def load_images(path: str) -> Split:
    """Reads images and their classes.

    Args:
        path: An npz with x, (n, ...) within [0, 1], and y, integers (n,).

    Raises:
        UserError: If there is no such file, or it holds anything else.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as stored:
            content = {name: stored[name] for name in ("x", "y") if name in stored.files}
    except FileNotFoundError as error:
        raise UserError(f"--images {path}: there is no such file") from error
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--images {path}: not a readable npz file ({error})") from error
    if len(content) < 2:
        raise UserError(f"--images {path} must hold the arrays x and y, got {list(content)}")
    x, y = content["x"], content["y"]
    if x.ndim < 2 or not len(x) or y.shape != x.shape[:1]:
        raise UserError(
            f"--images {path}: x must be (n, ...) with n >= 1 and y (n,), got {x.shape} and "
            f"{y.shape}"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise UserError(f"--images {path}: y must be integers >= 0, got {y.dtype}")
    if not (np.issubdtype(x.dtype, np.floating) and np.all((x >= 0) & (x <= 1))):
        raise UserError(
            f"--images {path}: x must be floating-point numbers within [0, 1], got {x.dtype} from "
            f"{x.min()} to {x.max()}"
        )
    return Split(x.astype(np.float32), y.astype(np.int32))
