import jax
import jax.numpy as jnp
import pytest

from experiments.lib.errors import UserError
from experiments.lib.models import build_model


def _build(kind, **sizes):
    defaults = {"hidden": (32,), "features": (8, 16), "num_classes": 10, "pool": 1}
    return build_model(kind, **{**defaults, **sizes})


def _num_params(model, side):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 1)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_cnn_has_the_published_size():
    assert _num_params(_build("cnn"), 28) == 11_274


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, 784 * 32 + 32 + 32 * 10 + 10),
        ({"pool": 2}, 196 * 32 + 32 + 32 * 10 + 10),
        ({"hidden": ()}, 784 * 10 + 10),
    ],
)
def test_mlp_size(sizes, expected):
    assert _num_params(_build("mlp", **sizes), 28) == expected


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_logits_of_small_images(kind):
    model = _build(kind, hidden=(4,), features=(2, 3))
    images = jnp.ones((5, 8, 8, 1))
    params = model.init(jax.random.key(0), images)
    logits = model.apply(params, images)
    assert logits.shape == (5, 10)
    assert jnp.isfinite(logits).all()


@pytest.mark.parametrize("sizes", [{"hidden": (0,)}, {"features": (8, -1)}, {"pool": 0}])
def test_bad_sizes(sizes):
    with pytest.raises(UserError, match=f"{next(iter(sizes))} must be at least 1"):
        _build("mlp", **sizes)


def test_pool_larger_than_the_image():
    with pytest.raises(UserError, match="pool is 9, larger than the images"):
        _num_params(_build("mlp", pool=9), 8)


def test_unknown_model():
    with pytest.raises(UserError, match="unknown model 'vit'.*mlp, cnn"):
        _build("vit")
