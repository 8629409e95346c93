"""Direction distributions, one per file."""

from zojax.directions.base import draw_range, flat_directions
from zojax.directions.coordinate import all_coordinates, coordinate
from zojax.directions.gaussian import gaussian
from zojax.directions.laplace import laplace
from zojax.directions.low_rank import low_rank
from zojax.directions.orthogonal import orthogonal
from zojax.directions.rademacher import rademacher
from zojax.directions.sparse import sparse
from zojax.directions.sphere import sphere

__all__ = [
    "all_coordinates",
    "coordinate",
    "draw_range",
    "flat_directions",
    "gaussian",
    "laplace",
    "low_rank",
    "orthogonal",
    "rademacher",
    "sparse",
    "sphere",
]
