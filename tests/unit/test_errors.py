import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import errors


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), jnp.float32(1), lambda count: 0.0])
def test_positive_numbers_and_schedules_pass(value):
    errors.check_positive("sigma", value)


@pytest.mark.parametrize(
    "value", [0, -1.0, np.nan, np.inf, None, "x", [1, 2], jnp.ones(2), True, jnp.ones(1)]
)
def test_other_values_are_refused_by_name(value):
    with pytest.raises(ValueError, match=r"sigma must be a .*number > 0"):
        errors.check_positive("sigma", value)


def test_traced_numbers_pass():
    def traced(value):
        assert errors.is_traced(value)
        errors.check_positive("sigma", value)
        return value

    jax.eval_shape(traced, -1.0)
    assert not errors.is_traced(jnp.ones(()))


@pytest.mark.parametrize("value", [0, 1.0, True, None, "3"])
def test_counts_are_integers_from_the_lowest(value):
    with pytest.raises(ValueError, match="size must be an integer >= 1"):
        errors.check_at_least("size", value, 1)
    errors.check_at_least("size", np.int64(1), 1)
