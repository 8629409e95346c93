"""Every test in this folder runs under strict promotion."""

import pytest


@pytest.fixture(autouse=True)
def _strict(strict_promotion):
    return strict_promotion
