"""C12: at a fixed chunk size temporaries do not grow with the number of directions."""

import jax
import jax.numpy as jnp
import pytest

import zojax
from tests.contract.registry import SHAPINGS

DIMENSION = 20_000
FLOAT = 4


@pytest.fixture(autouse=True)
def _optimised(_quick_compilation):
    """Memory is what the optimised program uses, as users run it."""
    jax.config.update("jax_disable_most_optimizations", False)


def temporaries(shaping, num_directions, directions):
    est = zojax.finite_difference(
        directions=directions, num_directions=num_directions, sigma=0.1, shaping=shaping
    )

    @jax.jit
    def grad(params, key):
        loss = lambda p: jnp.sum(p["w"] ** 2)  # noqa: E731
        return zojax.estimate(est, loss, params, key, (), execution=zojax.chunked(8))[0].grad

    params = {"w": jnp.zeros((DIMENSION // 100, 100))}
    compiled = grad.lower(params, jax.random.key(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("shaping", "directions"),
    [("identity", "gaussian"), ("centered_rank", "gaussian"), ("identity", "low_rank")],
)
def test_c12_temporaries_are_flat_in_the_number_of_directions(shaping, directions):
    part = getattr(zojax, directions)()
    few, many = (temporaries(SHAPINGS[shaping], n, part) for n in (64, 1024))
    # The losses themselves, a few times over (values, ranks, weights), are all that may grow.
    assert many - few <= 16 * 2 * 1024 * FLOAT
    assert many - few < FLOAT * DIMENSION * 8  # a single chunk of directions
    if directions == "low_rank":  # its noise is factors; eight pairs of points are evaluated
        assert few < FLOAT * DIMENSION * 8 * 3
