"""Faults that a diagnosis can name, each with what to change."""

from zojax.diagnostics.report import Diagnosis, show
from zojax.diagnostics.sample import Sample
from zojax.diagnostics.sigma_window import Ladder, unshared_noise


def find_faults(
    found: Diagnosis,
    sample: Sample,
    ladder: Ladder,
    repeated: float,
    learning_rate: float | None,
) -> list[str]:
    """Returns one sentence per fault, with what to change.

    Args:
      found: the numbers.
      sample: the estimates they come from.
      ladder: the loss along some directions.
      repeated: how far two values of the loss at the same point are apart, in loss units.
      learning_rate: of plain steps, or None.
    """
    faults = _faults_of_the_loss(found, sample, ladder, repeated)
    if sample.failed > 0.1:
        faults.append(
            f"{sample.failed:.0%} of the evaluations are NaN or infinite: lower sigma, or make the "
            "loss finite around the parameters."
        )
    if found.moved_fraction < 0.5:
        faults.append(
            f"learning_rate={learning_rate:.3g} moves only {found.moved_fraction:.0%} of the "
            "weights, the other updates are below half an ulp: raise it, or keep the parameters in "
            "float32 and cast them inside the loss."
        )
    short = found.measured_cosine + 3 * found.cosine_error < 0.5 * found.expected_cosine
    if short and not faults:
        faults.append(
            f"the cosine {found.measured_cosine:.2g} is far below the expected "
            f"{found.expected_cosine:.2g}: the loss is not close to linear within "
            f"sigma={found.sigma:.3g}, lower it (curvature ceiling {show(found.sigma_ceiling)})."
        )
    return faults


def _faults_of_the_loss(
    found: Diagnosis, sample: Sample, ladder: Ladder, repeated: float
) -> list[str]:
    """At most one: each of them explains the ones after it away."""
    sigma, noise = found.sigma, unshared_noise(ladder)
    if repeated > 0:
        return [
            f"the loss gives two values at the same point, {repeated:.2g} apart: draw its noise "
            "from a key passed in args, so that all points share it (common random numbers)."
        ]
    if noise > 0:
        return [
            f"differences of the loss stay at {noise:.2g} however small sigma is: draw the noise "
            "of the loss from a key passed in args, so that all points share it (common random "
            "numbers), or raise sigma until the differences stand out."
        ]
    if ladder.is_constant:
        return [
            "the loss is the same at every point: check that loss_fn uses its first argument, and "
            "that the mask selects what it uses."
        ]
    if sigma < found.sigma_floor:
        return [
            f"sigma={sigma:.3g} is below the rounding floor {found.sigma_floor:.2g}: raise sigma, "
            "or compute the loss in a wider dtype."
        ]
    if sample.signal_to_noise == 0:
        changing = ladder.sigmas[(ladder.levels > 0) & (ladder.sigmas > sigma)]
        return [
            f"the loss is flat within sigma={sigma:.3g}: raise sigma"
            + (f", it first changes at about {changing[0]:.2g}." if changing.size else ".")
        ]
    if sample.signal_to_noise < 10:
        return [
            f"the differences of the loss are only {sample.signal_to_noise:.2g} roundings: raise "
            "sigma, subtract a constant from the loss, or compute it in a wider dtype."
        ]
    return []
