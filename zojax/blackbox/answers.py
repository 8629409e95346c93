"""One call of a user's function: bounded in time, and its answer read and checked."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

Kind: TypeAlias = Literal["scores", "labels"]
FailureKind: TypeAlias = Literal["exception", "timeout", "shape", "dtype", "value"]


class Failure(NamedTuple):
    """Rows that were sent and not answered as they should have been.

    Attributes:
      kind: "exception", "timeout", "shape", "dtype", or "value" (scores that are not finite,
        labels that are no class).
      message: one sentence.
      num_rows: how many rows have no answer.
      samples: the sample of each of them, int64 (num_rows,).
    """

    kind: FailureKind
    message: str
    num_rows: int
    samples: np.ndarray


class OracleError(RuntimeError):
    """The function behind an oracle failed; raised where failures are not merely recorded.

    Attributes:
      failure: which rows, and how.
      answers: what `scores` or `labels` would have returned, NaN or -1 in the rows without an
        answer: the calls before the one that failed have been paid for.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure
        self.answers = np.empty(0)

    def __str__(self) -> str:
        return self.failure.message


class Answer(NamedTuple):
    """What one call gave.

    Attributes:
      values: float32 (b, classes) or int64 (b,); None if no row was answered.
      valid: which rows are answered, bool (b,).
      kind: of the failure, None if every row is answered.
      message: says what went wrong, "" if nothing did.
      error: what the function raised.
    """

    values: np.ndarray | None
    valid: np.ndarray
    kind: FailureKind | None = None
    message: str = ""
    error: Exception | None = None


class _NoAnswerError(Exception):
    """The call has not returned in time."""


def call(
    function: Callable[[np.ndarray], Any],
    batch: np.ndarray,
    kind: Kind,
    num_classes: int | None,
    timeout: float | None,
) -> Answer:
    """Calls a user's function once and reads its answer.

    Args:
      function: of a batch.
      batch: float32 (b, ...), the function's to keep.
      kind: what it returns.
      num_classes: how many there are, None if that is not known yet.
      timeout: seconds, None waits for ever.
    """
    num_rows = batch.shape[0]

    # Converting belongs to the call: a JAX result is only computed when it is read.
    def answer() -> np.ndarray:
        return _to_numpy(function(batch))

    try:
        found = answer() if timeout is None else _within(timeout, answer)
    except _NoAnswerError:
        message = f"the oracle's function did not answer {_rows(num_rows)} within {timeout} s"
        return _unanswered(num_rows, "timeout", message)
    except Exception as error:
        lines = str(error).splitlines() or ["no message"]
        name = type(error).__name__
        message = f"the oracle's function raised {name} on {_rows(num_rows)}: {lines[0]}"
        return _unanswered(num_rows, "exception", message, error)
    if kind == "scores":
        return _read_scores(found, num_rows, num_classes)
    return _read_labels(found, num_rows, num_classes)


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _within(seconds: float, function: Callable[[], np.ndarray]) -> np.ndarray:
    """Runs a function in a thread of its own, which is abandoned if it takes too long."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:  # raised again below, in the caller's thread
            outcome.put((None, error))

    # A daemon: a call that never returns must not keep the process alive.
    threading.Thread(target=work, name="zojax-oracle", daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise _NoAnswerError from None
    if error is not None:
        raise error
    return value


def _to_numpy(value: Any) -> np.ndarray:
    """A copy in NumPy. A torch tensor is known by its methods, so torch is never imported."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # NumPy has no such type
            value = value.float()
        value = value.numpy()
    return np.array(value)


def _read_scores(found: np.ndarray, num_rows: int, num_classes: int | None) -> Answer:
    is_number = jnp.issubdtype(found.dtype, np.floating) or jnp.issubdtype(found.dtype, np.integer)
    if not is_number:
        message = f"the oracle's function must return scores that are numbers, got {found.dtype}"
        return _unanswered(num_rows, "dtype", message)
    columns = num_classes if num_classes is not None else "at least 2"
    right = found.ndim == 2 and found.shape[0] == num_rows and found.shape[1] >= 2
    if not right or (num_classes is not None and found.shape[1] != num_classes):
        message = (
            f"the oracle's function must return scores of shape ({num_rows}, {columns}), "
            f"got shape {found.shape}"
        )
        return _unanswered(num_rows, "shape", message)
    with np.errstate(over="ignore"):  # too large for float32 is not finite, and reported as such
        scores = found.astype(np.float32)
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    if finite.all():
        return Answer(scores, finite)
    message = (
        f"the oracle's function returned scores that are NaN or infinite for "
        f"{np.sum(~finite)} of {num_rows} rows"
    )
    return Answer(scores, finite, "value", message)


def _read_labels(found: np.ndarray, num_rows: int, num_classes: int | None) -> Answer:
    if not jnp.issubdtype(found.dtype, np.integer):
        message = f"the oracle's function must return labels that are integers, got {found.dtype}"
        return _unanswered(num_rows, "dtype", message)
    if found.shape != (num_rows,):
        message = (
            f"the oracle's function must return labels of shape ({num_rows},), "
            f"got shape {found.shape}"
        )
        return _unanswered(num_rows, "shape", message)
    labels = found.astype(np.int64)
    known: np.ndarray = (labels >= 0) & (num_classes is None or labels < num_classes)
    if known.all():
        return Answer(labels, known)
    allowed = ">= 0" if num_classes is None else f"in [0, {num_classes})"
    message = (
        f"the oracle's function must return labels {allowed}, got {labels[~known][0]} "
        f"(among {np.sum(~known)} of {num_rows} rows)"
    )
    return Answer(labels, known, "value", message)


def _unanswered(
    num_rows: int, kind: FailureKind, message: str, error: Exception | None = None
) -> Answer:
    return Answer(None, np.zeros(num_rows, bool), kind, message, error)
