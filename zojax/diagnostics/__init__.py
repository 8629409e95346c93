"""Is this normal or is it broken? Measured against laws, with faults named."""

from zojax.diagnostics.diagnosis import diagnose
from zojax.diagnostics.laws import expected_cosine
from zojax.diagnostics.report import Diagnosis

__all__ = ["Diagnosis", "diagnose", "expected_cosine"]
