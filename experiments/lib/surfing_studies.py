"""The studies of `experiments.surfing`: surfing beside direct descent on one generator.

Every study yields rows of metrics. Both methods make the same number of steps from the same starts;
the learning rate (and what else is named) is chosen for each of them, at equal effort, on other
targets than those that are reported.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import zojax
from experiments.lib.surfing_bench import IMAGES, SOLVING, Bench, Row
from experiments.lib.surfing_measurements import compressed, one_bit
from experiments.lib.surfing_problems import METHODS, MethodName, Solver, scores
from zojax import inverse

StudyName = Literal["success", "compressed", "values", "one_bit", "options"]

_SIGMA = 1e-3  # of coordinate-wise differences: small against a piece of the generator


def success(bench: Bench) -> Iterator[Row]:
    """Recovers the latents of generated images.

    Where the generator ignores some latents it also searches the others alone (variant "active"),
    and with a weak prior on the way (variant "prior").

    Args:
        bench: The generator.
    """
    for variant, (problem, _) in bench.variants.items():
        for method in METHODS:
            found, rate, seconds = bench.solved(method, variant)
            yield {
                "study": "success",
                **bench.about,
                "variant": variant,
                "method": method,
                "learning_rate": rate,
                "num_active": int(bench.problem.active.sum()),
                **scores(problem, found),
                "seconds": seconds,
                IMAGES: {"target": problem.images, method: problem.images_of(found.x)},
            }


def values(bench: Bench) -> Iterator[Row]:
    """Recovers latents by values alone: coordinate-wise differences, 2 k queries a step.

    With the learning rate that was chosen for exact gradients.

    Args:
        bench: The generator.
    """
    problem = bench.problem
    loss_fn = inverse.reconstruction_loss(problem.generate)
    est = zojax.coordinate_difference(sigma=_SIGMA)
    methods: tuple[MethodName, ...] = ("direct", "surfing")
    for method in methods:
        found, rate, seconds = bench.solved(method)
        by_values = Solver(method, loss_fn, problem.snapshots, bench.effort, est)
        starts = problem.starts_for(method)
        answer, taken = by_values(rate, starts, bench.key(SOLVING), problem.images)
        solutions = {"exact": (found, seconds), "values": (answer, taken)}
        for gradient, (solution, duration) in solutions.items():
            yield {
                "study": "values",
                **bench.about,
                "variant": gradient,
                "method": method,
                "learning_rate": rate,
                **scores(problem, solution),
                "seconds": duration,
            }


def options(bench: Bench) -> Iterator[Row]:
    """Recovers latents with each option of surfing, at the learning rate of surfing without any.

    Args:
        bench: The generator.
    """
    problem, plain = bench.problem, bench.effort
    loss_fn = inverse.reconstruction_loss(problem.generate)
    _, rate, _ = bench.solved("surfing")
    half = dataclasses.replace(plain, num_steps=max(plain.num_steps // 2, 1))
    near = inverse.Neighbourhood(radius=1.0)
    among = inverse.Neighbourhood(radius=1.0, num_candidates=4)
    changed = {
        "none": plain,
        "adaptive advance": dataclasses.replace(plain, advance=inverse.Advance()),
        "interpolated in 2, half the steps": half,
        "sign check": dataclasses.replace(plain, options={"check_sign": True}),
        "neighbourhood of radius 1": dataclasses.replace(plain, options={"neighbourhood": near}),
        "the same, 4 candidates": dataclasses.replace(plain, options={"neighbourhood": among}),
    }
    for name, effort in changed.items():
        finer = inverse.interpolate_snapshots(problem.snapshots, 2 if effort is half else 1)
        solver = Solver("surfing", loss_fn, finer, effort)
        starts = problem.starts_for("surfing")
        found, seconds = solver(rate, starts, bench.key(SOLVING), problem.images)
        yield {
            "study": "options",
            **bench.about,
            "variant": name,
            "method": "surfing",
            "learning_rate": rate,
            **scores(problem, found),
            "seconds": seconds,
        }


STUDIES: dict[StudyName, Callable[[Bench], Iterator[Row]]] = {
    "success": success,
    "values": values,
    "compressed": compressed,
    "one_bit": one_bit,
    "options": options,
}
