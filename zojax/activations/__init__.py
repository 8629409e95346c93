"""Gradients from noise on activations: per-example losses and the inputs of layers, no derivative.

Grey-box: more access than a black box, less than back-propagation.
"""

from zojax.activations.activation_noise import activation_noise
from zojax.activations.description import Description
from zojax.activations.laws import Cosines, expected_cosine
from zojax.activations.plan import Row
from zojax.activations.report import Quality, describe, diagnose

__all__ = [
    "Cosines",
    "Description",
    "Quality",
    "Row",
    "activation_noise",
    "describe",
    "diagnose",
    "expected_cosine",
]
