"""Every test in this folder is marked `contract` and runs under strict promotion."""

from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.contract)


@pytest.fixture(autouse=True)
def _strict(strict_promotion):
    return strict_promotion


@pytest.fixture(autouse=True)
def _quick_compilation():
    """Compiling is most of the suite's time; programs this small need no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
