import pytest

import zojax


@pytest.mark.parametrize(
    ("stencil", "has_center", "is_difference"),
    [(zojax.one_point, False, False), (zojax.forward, True, True), (zojax.central, False, True)],
)
def test_properties(stencil, has_center, is_difference):
    assert stencil.has_center == has_center
    assert stencil.is_difference == is_difference
    # Along a line of slope 1 the difference quotient is 1.
    slope = sum(o * w for o, w in zip(stencil.offsets, stencil.weights, strict=True))
    assert slope == 1
