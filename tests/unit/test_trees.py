import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax import trees

SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)
PARAMS = {"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "steps": np.arange(2)}

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
leaves = st.one_of(
    shapes.map(lambda s: np.ones(s, np.float32)), shapes.map(lambda s: np.ones(s, np.int32))
)
pytrees = st.recursive(
    leaves, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.sampled_from("abc"), x))
)


def test_size_counts_scalars():
    assert trees.size(PARAMS) == 11
    assert trees.size({}) == 0


@given(st.lists(shapes, min_size=1, max_size=4))
@SETTINGS
def test_split_and_ravel_are_inverse(all_shapes):
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in all_shapes]
    flat = np.arange(trees.size(like), dtype=np.float32)
    parts = trees.split(flat, like)
    assert [part.shape for part in parts] == all_shapes
    np.testing.assert_array_equal(trees.ravel(parts), flat)


@given(pytrees, st.booleans())
@SETTINGS
def test_partition_and_merge_are_inverse(params, use_mask):
    mask = (lambda path: "b" not in path) if use_mask else None
    try:
        selected, rest = trees.partition(params, mask)
    except ValueError as error:
        assert "nothing to perturb" in str(error)  # noqa: PT017
        return
    assert all(trees.is_float(leaf) for leaf in jax.tree.leaves(selected))
    merged = trees.merge(selected, rest)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_none_subtrees_survive():
    params = {"a": np.ones(2), "b": None}
    assert trees.merge(*trees.partition(params, None))["b"] is None


def test_predicate_sees_paths_with_slashes():
    seen = []
    trees.resolve_mask({"a": [np.ones(1), np.ones(1)], "b": {"c": np.ones(1)}}, seen_by(seen))
    assert seen == ["a/0", "a/1", "b/c"]


def seen_by(seen):
    def predicate(path):
        seen.append(path)
        return True

    return predicate


def test_masks_of_every_kind_resolve_to_bools():
    expected = {"dense": {"kernel": True, "bias": False}, "steps": False}
    full = {"dense": {"kernel": True, "bias": False}, "steps": True}
    assert trees.resolve_mask(PARAMS, full) == expected
    assert trees.resolve_mask(PARAMS, lambda path: path.endswith("kernel")) == expected
    both = {"dense": {"kernel": True, "bias": True}, "steps": False}
    assert trees.resolve_mask(PARAMS, {"dense": True, "steps": False}) == both
    assert trees.resolve_mask(PARAMS, None) == trees.resolve_mask(PARAMS, True) == both


@pytest.mark.parametrize(
    "mask", [{"dense": True}, {"dense": True, "steps": True, "more": True}, [True, False]]
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match="mask does not fit params"):
        trees.resolve_mask(PARAMS, mask)


def test_a_mask_per_element_is_refused():
    with pytest.raises(ValueError, match="one bool per leaf"):
        trees.resolve_mask(PARAMS, {"dense": np.ones(3, bool), "steps": False})


@pytest.mark.parametrize(
    ("params", "mask", "message"),
    [
        ({"steps": np.arange(2)}, None, "no floating-point leaf .*int"),
        ({}, None, "no leaves"),
        (PARAMS, lambda path: path == "steps", "mask selects no floating-point leaf"),
        (np.ones(2, np.complex64), None, "complex64"),
    ],
)
def test_nothing_to_perturb_is_refused_with_the_dtypes(params, mask, message):
    with pytest.raises(ValueError, match=message):
        trees.resolve_mask(params, mask)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32")]
)
def test_points_are_at_least_float32(dtype, expected):
    assert trees.point_dtype(jnp.dtype(dtype)) == expected
    moved = trees.add_scaled([jnp.ones(2, dtype)], [jnp.ones(2)], 0.5)[0]
    assert moved.dtype == expected
    np.testing.assert_array_equal(moved, [1.5, 1.5])


def test_float64_stays_float64():
    with jax.enable_x64(True):
        tree = [jnp.ones(2, jnp.float64), jnp.ones(1, jnp.float32)]
        assert trees.point_dtype(jnp.dtype("float64")) == "float64"
        assert trees.ravel(tree).dtype == "float64"
