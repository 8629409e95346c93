import jax
import numpy as np
import pytest

from zojax.keys import check_key, noise_key


def test_typed_threefry_keys_pass_also_traced():
    check_key(jax.random.key(0))
    jax.eval_shape(lambda key: [check_key(key), key][1], jax.random.key(0))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 7, None, np.zeros(2, np.uint32)])
def test_what_is_not_a_typed_key_is_a_type_error(key):
    with pytest.raises(TypeError, match=r"key must be a typed key made by jax.random.key"):
        check_key(key)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_other_implementations_are_refused_with_the_way_out(implementation):
    with pytest.raises(ValueError, match="impl='threefry2x32'"):
        check_key(jax.random.key(0, impl=implementation))


def test_noise_has_a_domain_of_its_own():
    key = jax.random.key(0)
    data = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(100)]
    noise = jax.random.key_data(noise_key(key))
    assert not any(np.array_equal(noise, other) for other in [jax.random.key_data(key), *data])
