"""Stencils: at which points of a direction the loss is evaluated.

With difference quotient D along eps (score s), an estimate is the mean of D s over directions.
"""

from zojax.types import Stencil

one_point = Stencil("one_point", offsets=(1.0,), weights=(1.0,))
"""f(x + sigma eps) / sigma: n queries. Unbiased for the smoothed gradient, but its variance grows
as f(x)^2 / sigma^2; use it with `standardize` or `centered_rank`, which subtract a baseline."""

forward = Stencil("forward", offsets=(1.0,), weights=(1.0,), center_weight=-1.0)
"""(f(x + sigma eps) - f(x)) / sigma: n + 1 queries, the centre first. Same expectation as
`one_point` (the centre is a baseline); even-order terms of the loss remain as variance."""

central = Stencil("central", offsets=(1.0, -1.0), weights=(0.5, -0.5))
"""(f(x + sigma eps) - f(x - sigma eps)) / (2 sigma): 2n queries (antithetic pairs). For symmetric
directions the same expectation, with every even-order term of the loss cancelled in each pair."""
