"""Networks that survive what happens to their weights: models, objectives, evaluation."""

from zojax.robustness.devices import (
    bit_errors,
    drift,
    gaussian_noise,
    multiplicative_noise,
    pruned,
    quantized,
    stuck_at,
    student_t_noise,
    uniform_noise,
)
from zojax.robustness.evaluation import (
    NoiseCurve,
    Sharpness,
    chip_scores,
    noise_curve,
    pac_bayes_radius,
    sharpness,
)
from zojax.robustness.objectives import (
    cvar,
    device_loss,
    entropic_risk,
    local_entropy,
    quantile,
)
from zojax.robustness.weight_noise import (
    WeightNoise,
    check_finite,
    composed,
    coverage,
    scoped,
)

__all__ = [
    "NoiseCurve",
    "Sharpness",
    "WeightNoise",
    "bit_errors",
    "check_finite",
    "chip_scores",
    "composed",
    "coverage",
    "cvar",
    "device_loss",
    "drift",
    "entropic_risk",
    "gaussian_noise",
    "local_entropy",
    "multiplicative_noise",
    "noise_curve",
    "pac_bayes_radius",
    "pruned",
    "quantile",
    "quantized",
    "scoped",
    "sharpness",
    "student_t_noise",
    "stuck_at",
    "uniform_noise",
]
