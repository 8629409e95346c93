"""Nothing public escapes the contracts."""

import inspect

import pytest

import zojax
from tests.contract.registry import DIRECTIONS, ESTIMATORS, EXECUTIONS, SHAPINGS, STENCILS


def factories(result_type):
    functions = {
        n: getattr(zojax, n) for n in zojax.__all__ if inspect.isfunction(getattr(zojax, n))
    }
    return {
        n for n, f in functions.items() if inspect.signature(f).return_annotation is result_type
    }


def instances(kind):
    return {name for name in zojax.__all__ if isinstance(getattr(zojax, name), kind)}


@pytest.mark.parametrize(
    ("public", "registry"),
    [
        (factories(zojax.Directions), DIRECTIONS),
        # It names no points and sees more than values: tests/unit/test_activations*.py.
        (factories(zojax.Estimator) - {"activation_noise"}, ESTIMATORS),
        (factories(zojax.Execution) - {"choose_chunk"}, EXECUTIONS),  # it returns a chunked()
        (instances(zojax.Stencil), STENCILS),
        (instances(zojax.Shaping), SHAPINGS),
    ],
    ids=["directions", "estimators", "executions", "stencils", "shapings"],
)
def test_every_public_component_is_registered(public, registry):
    assert public
    assert public == {name.partition("(")[0] for name in registry}
