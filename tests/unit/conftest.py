"""Every test in this folder runs under strict promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict(strict_promotion):
    return strict_promotion


@pytest.fixture(autouse=True)
def _quick_compilation():
    """Compiling is most of the suite's time; programs this small need no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
