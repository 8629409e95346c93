"""Explanations of a decision from the model's values alone: what suffices, what must be absent."""

from zojax.explain.driver import run
from zojax.explain.latent import latent_negative
from zojax.explain.pixels import pertinent_negative, pertinent_positive
from zojax.explain.results import Explanations
from zojax.explain.solver import Explainer

__all__ = [
    "Explainer",
    "Explanations",
    "latent_negative",
    "pertinent_negative",
    "pertinent_positive",
    "run",
]
