"""How long a gradient estimate takes, next to plain inference and to other libraries.

One process; all programs of a workload are run in turn, again and again, so that noise of the
machine meets all alike. Writes `results.json`, `table.md` and `population.png`.

    python scripts/bench_population.py --output runs/bench_population
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from bench_models import SPECS, Program, Workload, build, programs_of

import zojax

PACKAGES = ("zojax", "jax", "jaxlib", "flax", "optax", "quax", "numpy", "evosax", "shardes")


def prepare(program: Program, key: Any) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Compiles a program from scratch and runs it once.

    Args:
      program: what to compile.
      key: for the first run.

    Returns:
      `(run, record)`: `run(key)`, and what is known so far.
    """
    jax.clear_caches()  # what another program has traced would be free
    record = {"label": program.label, "kind": program.kind, "directions": program.directions}
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # what "auto" chose
        compiled = jax.jit(program.function).lower(key, *program.args).compile()
    record["compile_seconds"] = time.perf_counter() - start
    record["printed"] = printed.getvalue().strip()
    memory = compiled.memory_analysis()
    record["temporary_bytes"] = getattr(memory, "temp_size_in_bytes", None)
    run = lambda key: compiled(key, *program.args)  # noqa: E731
    start = time.perf_counter()
    jax.block_until_ready(run(key))
    return run, record | {"first_seconds": time.perf_counter() - start}


@jax.jit
def _cosine(a: Any, b: Any) -> jax.Array:
    a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (a, b))
    return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def measure(
    workload: Workload, programs: list[Program], repetitions: int, slow_seconds: float
) -> list[dict[str, Any]]:
    """Times programs in turn.

    Args:
      workload: what they belong to.
      programs: what to run; one that fails is reported and left out.
      repetitions: rounds; every round has its own key, the same for all programs.
      slow_seconds: a program that takes longer runs in the first round only.

    Returns:
      One record per program.
    """
    keys = jax.random.split(jax.random.key(1), repetitions + 1)
    ready = []
    for program in programs:
        try:
            run, record = prepare(program, keys[-1])
        except Exception as error:  # out of memory, a peer that does not know this model
            print(f"  {program.label}: failed, {type(error).__name__}: {str(error)[:200]}")
            continue
        print(
            f"  {program.label}: compiled in {record['compile_seconds']:.2f} s, "
            f"first run {1000 * record['first_seconds']:.1f} ms",
            *([f"\n    {record['printed']}"] if record["printed"] else []),
            flush=True,
        )
        ready.append((program, run, record | {"seconds": [], "cosines": []}))

    order = random.Random(0)
    for round_ in range(repetitions):
        for program, run, record in order.sample(ready, len(ready)):
            if round_ and record["first_seconds"] > slow_seconds:
                continue
            start = time.perf_counter()
            output = jax.block_until_ready(run(keys[round_]))
            record["seconds"].append(time.perf_counter() - start)
            if program.gradient is not None:
                estimate = program.gradient(output)
                record["cosines"].append(float(_cosine(estimate, program.exact)))
            del output
    return [_summarise(record) for _, _, record in ready]


def _summarise(record: dict[str, Any]) -> dict[str, Any]:
    quartiles = np.percentile(record["seconds"], [0, 25, 50, 75])
    statistics = dict(zip(("min", "lower", "median", "upper"), quartiles.tolist(), strict=True))
    cosine = float(np.mean(record["cosines"])) if record["cosines"] else None
    return record | statistics | {"cosine": cosine}


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds to every record its time over the best inference, evosax's time over it, its noise."""
    medians = lambda kind: [r["median"] for r in records if r["kind"] == kind]  # noqa: E731
    inference, evosax = min(medians("inference"), default=None), medians("evosax")
    noise = {r["directions"]: r["median"] for r in records if r["kind"] == "noise"}
    for record in records:
        record["to_inference"] = record["median"] / inference if inference else None
        record["evosax_to_this"] = evosax[0] / record["median"] if evosax else None
        is_own = record["kind"] == "zojax"
        record["noise_seconds"] = noise.get(record["directions"]) if is_own else None


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], Any], str], ...] = (
    ("median ms", lambda r: 1e3 * r["median"], ".1f"),
    ("min", lambda r: 1e3 * r["min"], ".1f"),
    ("quartiles", lambda r: f"{1e3 * r['lower']:.1f}-{1e3 * r['upper']:.1f}", ""),
    ("/ inference", lambda r: r["to_inference"], ".2f"),
    ("evosax / this", lambda r: r["evosax_to_this"], ".1f"),
    ("noise ms", lambda r: r["noise_seconds"] and 1e3 * r["noise_seconds"], ".1f"),
    ("compile s", lambda r: r["compile_seconds"], ".2f"),
    ("temporary MB", lambda r: r["temporary_bytes"] and r["temporary_bytes"] / 1e6, ".1f"),
    ("cosine", lambda r: r["cosine"], ".4f"),
)


def table(records: list[dict[str, Any]]) -> str:
    """Renders records as a Markdown table with aligned columns."""
    rows = [["program", *(name for name, _, _ in COLUMNS)]]
    for record in records:
        values = [(value(record), form) for _, value, form in COLUMNS]
        cells = ["" if value is None else format(value, form) for value, form in values]
        rows.append([record["label"], *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(workload: Workload) -> dict[str, Any]:
    """The numbers a table needs beside it."""
    spec = workload.spec
    dimension = sum(leaf.size for leaf in jax.tree.leaves(workload.params))
    return {
        "model": repr(spec.module).replace("\n", " "),
        "parameters": dimension,
        "evaluations": 2 * spec.pairs,
        "batch": spec.batch,
        "input_shape": spec.input_shape,
        "expected_gaussian_cosine": (spec.pairs / (spec.pairs + dimension + 1)) ** 0.5,
    }


def machine() -> dict[str, Any]:
    """Where and with what this runs."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "platform": platform.platform(),
        "cpu": models[0] if models else platform.processor(),
        "cores": cores,
        "devices": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "versions": versions | {"zojax": zojax.__version__},
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load_average_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Draws time relative to inference, one panel per workload; without matplotlib, says so."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no figure (pip install -e '.[experiments]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    workloads = results["workloads"]
    colours = {"zojax": "C0", "evosax": "C3", "shardes": "C1"}
    counts = [sum(r["kind"] in colours for r in w["programs"]) for w in workloads.values()]
    figure, panels = plt.subplots(
        len(workloads),
        figsize=(9, 1.5 * len(workloads) + 0.22 * sum(counts)),
        squeeze=False,
        height_ratios=[count + 3 for count in counts],
        layout="constrained",
    )
    for (name, workload), panel in zip(workloads.items(), panels[:, 0], strict=True):
        shown = [r for r in workload["programs"] if r["kind"] in colours]
        ratios = np.array([r["to_inference"] for r in shown])
        lower, upper = (np.array([r[k] / r["median"] for r in shown]) for k in ("lower", "upper"))
        panel.barh(
            [r["label"] for r in shown],
            ratios,
            xerr=[ratios * (1 - lower), ratios * (upper - 1)],
            color=[colours[r["kind"]] for r in shown],
        )
        panel.axvline(1, color="black", linewidth=1)
        panel.invert_yaxis()
        panel.set(xscale="log", title=name, xlabel="time / plain inference (median, quartiles)")
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [name for name in SPECS if name != "wide"]
    parser.add_argument("--workloads", nargs="+", choices=list(SPECS), default=default)
    parser.add_argument("--repetitions", type=int, default=None, help="rounds (15; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument(
        "--only", nargs="+", help="of zojax and peers, only labels that contain one of these"
    )
    parser.add_argument(
        "--slow-seconds", type=float, default=10, help="what takes longer is timed once"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench_population"))
    options = parser.parse_args()
    if options.repetitions is None:
        options.repetitions = 3 if options.quick else 15
    if options.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {options.repetitions}")
    return options


def _choose(programs: list[Program], only: list[str] | None) -> list[Program]:
    """Keeps inference, what contains one of the texts, and the noise of what is kept."""
    if only is None:
        return programs
    kept = [p for p in programs if any(text in p.label for text in only) and p.kind != "noise"]
    names = {p.directions for p in kept if p.kind == "zojax"}
    noise = [p for p in programs if p.kind == "noise" and p.directions in names]
    return [p for p in programs if p.kind == "inference"] + noise + kept


def main() -> None:
    """Measures, prints and writes."""
    options = parse_arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "quick": options.quick, "workloads": {}}
    tables = []
    for name in options.workloads:
        workload = build(SPECS[name], options.quick)
        facts = describe(workload)
        heading = (
            f"{name}: {facts['parameters']:,} parameters, {facts['evaluations']} evaluations "
            f"x batch {facts['batch']}, expected cosine {facts['expected_gaussian_cosine']:.4f}"
        )
        print(heading, flush=True)
        chosen = _choose(list(programs_of(workload)), options.only)
        records = measure(workload, chosen, options.repetitions, options.slow_seconds)
        add_ratios(records)
        results["workloads"][name] = facts | {"programs": records}
        tables.append(f"{heading}\n\n{table(records)}\n")
        print(f"\n{tables[-1]}", flush=True)
        # After every workload: an interrupted run keeps what it has.
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "table.md").write_text("\n".join(tables))
    draw_figure(results, options.output / "population.png")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
