"""Direction distributions, one per file."""

from zojax.directions.base import adaptive_directions, draw_range, flat_directions
from zojax.directions.coordinate import all_coordinates, coordinate, random_coordinates
from zojax.directions.coordinate_subset import coordinate_subset
from zojax.directions.gaussian import gaussian
from zojax.directions.guided import guided
from zojax.directions.hadamard import hadamard
from zojax.directions.laplace import laplace
from zojax.directions.low_rank import low_rank
from zojax.directions.orthogonal import orthogonal
from zojax.directions.rademacher import rademacher
from zojax.directions.sparse import sparse
from zojax.directions.sphere import sphere
from zojax.directions.student_t import student_t

__all__ = [
    "adaptive_directions",
    "all_coordinates",
    "coordinate",
    "coordinate_subset",
    "draw_range",
    "flat_directions",
    "gaussian",
    "guided",
    "hadamard",
    "laplace",
    "low_rank",
    "orthogonal",
    "rademacher",
    "random_coordinates",
    "sparse",
    "sphere",
    "student_t",
]
