"""Validation of configuration: `ValueError` when an object is built, naming argument and value.

Bad *numbers* that appear while running (a non-finite loss) are data, not errors; see
`zojax.types.EstimateInfo`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def is_traced(value: Any) -> bool:
    """Returns True when `value` is a JAX tracer, whose number is not known yet.

    Args:
      value: any object.
    """
    return isinstance(value, jax.core.Tracer)


def check_positive(name: str, value: Any) -> None:
    """Raises unless `value` is a finite number above zero; traced values and schedules pass.

    Args:
      name: the argument's name, for the message.
      value: a number, a 0-d array, a tracer, or a callable (an optax schedule).

    Raises:
      ValueError: if the value is a known number that is not finite and positive.
    """
    if callable(value) or is_traced(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number > 0, got {value!r}") from error
    if isinstance(value, bool) or np.ndim(value) != 0:
        raise ValueError(f"{name} must be a single number > 0, got {value!r}")
    if not np.isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_that(name: str, value: Any, allowed: str, holds: Callable[[Any], Any]) -> None:
    """Raises unless a known value lies where it should; traced values pass.

    Args:
      name: the argument's name, for the message.
      value: the argument.
      allowed: what it must be, for the message, e.g. "in [0, 1)".
      holds: `value -> bool`.

    Raises:
      ValueError: if `holds(value)` is False.
    """
    if not is_traced(value) and not holds(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_at_least(name: str, value: Any, lowest: int) -> None:
    """Raises unless `value` is an integer of at least `lowest`.

    Args:
      name: the argument's name, for the message.
      value: the argument.
      lowest: the smallest allowed value.

    Raises:
      ValueError: if it is not.
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < lowest:
        raise ValueError(f"{name} must be an integer >= {lowest}, got {value!r}")


def check_instance(name: str, value: Any, kind: type, hint: str) -> None:
    """Raises unless `value` is an instance of `kind`.

    Args:
      name: the argument's name, for the message.
      value: the argument.
      kind: the required class.
      hint: what to pass instead, for the message.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {hint}, got {value!r}")
