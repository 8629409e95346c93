"""Fewer batch sizes for functions that are compiled for each."""

from collections.abc import Callable
from typing import Any

import numpy as np


def padded(
    function: Callable[[np.ndarray], Any], *, smallest: int = 8
) -> Callable[[np.ndarray], Any]:
    """Repeats the first row until the batch size is a power of two; drops the extra answers.

    For jitted functions behind an oracle: batches shrink as samples finish, and each size compiles
    anew. The oracle counts what it asks for, which are the rows without the repeats. Not for
    functions that cost by the row.

    >>> import numpy as np
    >>> from zojax import blackbox
    >>> sizes = []
    >>> def model(rows):
    ...     sizes.append(len(rows))
    ...     return rows @ np.eye(2)
    >>> blackbox.padded(model)(np.ones((11, 2))).shape, sizes
    ((11, 2), [16])

    Args:
      function: NumPy (b, ...) to (b, ...), one answer per row.
      smallest: batch size at least, a power of two.
    """

    def call(rows: np.ndarray) -> Any:
        size = max(smallest, 1 << (len(rows) - 1).bit_length())
        extra = np.repeat(rows[:1], size - len(rows), axis=0)
        return function(np.concatenate([rows, extra]))[: len(rows)]

    return call
