"""What an estimate costs per device, and what crosses devices, as the number of devices grows.

Work and bytes per device are read from the compiled program, so simulated devices (on a CPU) show
them as well as real ones; seconds are measured on real accelerators only. Writes `results.json`,
`table.md` and `scaling.png`.

    python scripts/bench_devices.py --output runs/bench_devices
"""

import argparse
import collections
import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from bench_models import SIGMA, SPECS, Mlp, Workload, build
from bench_population import machine

import zojax

WIDTHS = ((16, 16), (128, 128), (512, 512))  # of the networks whose traffic is compared
COUNTS = (64, 1024, 16384)  # and the numbers of directions
DIRECTIONS = [zojax.gaussian(), zojax.rademacher(), zojax.low_rank(1), zojax.orthogonal(16)]


def workload_of(widths: tuple[int, ...], quick: bool) -> Workload:
    """The MLP of `bench_population.py`, with other widths and no more data than one batch."""
    return build(SPECS["mlp"]._replace(module=Mlp(widths), pairs=1), quick)


def compile_step(workload: Workload, devices: int, n: int, size: int | None, **choices: Any) -> Any:
    """Compiles an estimate of n directions, with `choices` for `zojax.finite_difference`."""
    est = zojax.finite_difference(num_directions=n, sigma=SIGMA, **choices)
    mesh = jax.make_mesh((devices,), ("directions",), devices=jax.devices()[:devices])
    how = {"execution": zojax.sharded(mesh, chunk_size=size)}

    def step(params: Any, key: Any, batch: Any) -> zojax.Estimate:
        return zojax.estimate(est, workload.loss_fn, params, key, (), args=(batch,), **how)[0]

    return jax.jit(step).lower(workload.params, jax.random.key(0), workload.batch).compile()


def traffic(compiled: Any) -> dict[str, int]:
    """Operand bytes and number of the all-reduces in a program; any other collective raises."""
    text = compiled.as_text()
    if re.search(r"= .*(all-gather|all-to-all|collective-permute|reduce-scatter)\S*\(", text):
        raise RuntimeError("a collective other than all-reduce")
    found = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    total = 0
    for _, bits, dims in re.findall(r"\b([a-z]+)(\d+)\[([\d,]*)\]", " ".join(found)):
        total += int(bits) // 8 * int(np.prod([int(size) for size in dims.split(",") if size]))
    return {"bytes": total, "operations": len(found)}


def predicted_bytes(d: int, n: int, stencil: Any, shaping: Any) -> int:
    """The gradient, k losses per direction, the centre's loss, the number of valid directions."""
    valid = 4 * (not shaping.is_global)  # a global shaping sees all losses and counts itself
    return 4 * d + 4 * len(stencil.offsets) * n + 4 * stencil.has_center + valid


def count_evaluations(workload: Workload, devices: int, n: int, chunk_size: int) -> list[int]:
    """Runs one estimate with a loss that tells the host on which device it was evaluated."""
    counts: collections.Counter[int] = collections.Counter()

    def counted(params: Any, batch: Any) -> jax.Array:
        value, index = workload.loss_fn(params, batch), jax.lax.axis_index("directions")
        jax.debug.callback(lambda i, _: counts.update([int(i)]), index, value)
        return value

    few = workload._replace(loss_fn=counted, batch=jax.tree.map(lambda x: x[:8], workload.batch))
    compiled = compile_step(few, devices, n, chunk_size)
    jax.block_until_ready(compiled(few.params, jax.random.key(0), few.batch))
    jax.effects_barrier()
    return [counts[i] for i in range(devices)]


def median_seconds(compiled: Any, workload: Workload, repetitions: int) -> float:
    """Median over runs with different keys, after one that is not counted."""
    seconds = []
    for key in jax.random.split(jax.random.key(1), repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(workload.params, key, workload.batch))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def measure_scaling(workload: Workload, devices: int, n: int, options: Any) -> dict[str, Any]:
    """One row of the first table.

    XLA's cost analysis counts the body of a loop once, so floating-point operations and bytes
    accessed are those of the program that evaluates its whole share at once; evaluations are
    counted in the chunked one.
    """
    record: dict[str, Any] = {"devices": devices, "n": n}
    record["evaluations"] = count_evaluations(workload, devices, n, options.chunk_size)
    for name, size in (("at_once", None), ("chunked", options.chunk_size)):
        compiled = compile_step(workload, devices, n, size)
        part = {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
        if size is None:
            cost = compiled.cost_analysis()
            part |= {"flops": cost["flops"], "bytes_accessed": cost["bytes accessed"]}
        part["all_reduce"] = traffic(compiled)
        if jax.default_backend() != "cpu":  # simulated devices share the cores
            part["seconds"] = median_seconds(compiled, workload, options.repetitions)
        record[name] = part
    print(f"  {devices} devices, n = {n}", flush=True)
    return record


def measure_traffic(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the second table: networks and n, then directions, stencils and shapings."""
    default = {"directions": DIRECTIONS[0], "stencil": zojax.central, "shaping": zojax.identity}
    largest, records = max(options.devices), []

    def add(workload: Workload, devices: int, n: int, **choices: Any) -> None:
        choices = default | choices
        d = sum(leaf.size for leaf in jax.tree.leaves(workload.params))
        names = {name: choice.name for name, choice in choices.items()}
        record = {"d": d, "n": n, "devices": devices} | names
        record |= traffic(compile_step(workload, devices, n, options.chunk_size, **choices))
        predicted = predicted_bytes(d, n, choices["stencil"], choices["shaping"])
        records.append(record | {"predicted_bytes": predicted})
        print(f"  {records[-1]}", flush=True)

    for widths in () if options.quick else WIDTHS:
        for n in COUNTS:
            for devices in sorted({min(2, largest), largest}):
                add(workload_of(widths, options.quick), devices, n)
    workload = workload_of(options.widths, options.quick)
    for directions in DIRECTIONS[1 : 2 if options.quick else None]:
        add(workload, largest, COUNTS[0], directions=directions)
    others = [{"stencil": zojax.forward}, {"stencil": zojax.one_point}]
    others.append({"shaping": zojax.centered_rank})
    for choices in others[: 1 if options.quick else None]:
        add(workload, largest, COUNTS[0], **choices)
    return records


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(2, *map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, ["-" * (width - 1) + ":" for width in widths], *rows]
    padded = ([cell.rjust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def tables(results: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    timed = any("seconds" in r["at_once"] for r in results["scaling"])
    rows, headings = [], ["scaling", "devices", "n", "evaluations per device", "GFLOP"]
    headings += ["MB accessed", "temporary MB", "chunked: temporary MB", "all-reduce bytes"]
    headings += timed * ["ms", "chunked: ms"]
    for r in results["scaling"]:
        whole, evaluations = r["at_once"], sorted(set(r["evaluations"]))
        row = [r["kind"], str(r["devices"]), str(r["n"]), " or ".join(map(str, evaluations))]
        row += [f"{whole['flops'] / 1e9:.3f}", f"{whole['bytes_accessed'] / 1e6:.1f}"]
        row += [f"{r[name]['temporary_bytes'] / 1e6:.1f}" for name in ("at_once", "chunked")]
        row += [f"{whole['all_reduce']['bytes']:,}" if r["devices"] > 1 else "0"]
        if timed:
            row += [f"{1e3 * r[name]['seconds']:.2f}" for name in ("at_once", "chunked")]
        rows.append(row)
    first = markdown(headings, rows)
    rows = [
        [r["directions"], r["stencil"], r["shaping"], f"{r['d']:,}", f"{r['n']:,}"]
        + [str(r["devices"]), f"{r['bytes']:,}", f"{r['predicted_bytes']:,}", str(r["operations"])]
        for r in results["traffic"]
    ]
    headings = ["directions", "stencil", "shaping", "d", "n", "devices", "all-reduce bytes"]
    headings += ["predicted", "all-reduces"]
    return first + ("\n" + markdown(headings, rows) if rows else "")


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Work per device, and bytes against n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, marker in (("strong", "o"), ("weak", "s")):
        rows = [r for r in results["scaling"] if r["kind"] == kind]
        devices = np.array([r["devices"] for r in rows])
        flops = np.array([r["at_once"]["flops"] for r in rows]) / rows[0]["at_once"]["flops"]
        left.loglog(devices, flops, marker, label=f"{kind} scaling")
        left.loglog(devices, (devices / devices[0]) ** (-1.0 * (kind == "strong")), "k:")
    left.set(xlabel="devices", title="compiled FLOPs per device, relative (dotted: ideal)")
    left.set_xticks(devices, map(str, devices))
    left.set_yticks(1 / devices, [f"1/{count}" if count > 1 else "1" for count in devices])
    left.minorticks_off()
    rows = [r for r in results["traffic"] if r["stencil"] == "central"]
    for i, d in enumerate(sorted({r["d"] for r in rows})):
        points = [(r["n"], r["bytes"]) for r in rows if r["d"] == d]
        right.loglog(*zip(*points, strict=True), "o", color=f"C{i}", label=f"d = {d:,}")
        n = np.geomspace(min(COUNTS), max(COUNTS))
        right.loglog(n, 4 * d + 8 * n, ":", color=f"C{i}")
    right.set(xlabel="directions n", title="all-reduced bytes per step (dotted: 4 d + 8 n)")
    left.legend()
    right.legend(loc=(0.65, 0.66))
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--directions", type=int, default=128, help="n of strong scaling")
    parser.add_argument("--per-device", type=int, default=32, help="n per device, weak scaling")
    parser.add_argument("--chunk-size", type=int, default=4, help="of the chunked program")
    parser.add_argument("--repetitions", type=int, default=15, help="on real devices only")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_devices"))
    options = parser.parse_args()
    if options.quick:
        vars(options).update(devices=[1, 2], directions=8, per_device=4, chunk_size=2)
    options.widths = WIDTHS[0 if options.quick else 1]
    if any(d < 1 or options.directions % d or COUNTS[0] % d for d in options.devices):
        parser.error(f"--directions and {COUNTS[0]} must be divisible by every one of --devices")
    return options


def main() -> None:
    """Measures, prints and writes."""
    options = parse_arguments()
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    jax.config.update("jax_enable_compilation_cache", False)
    options.devices = sorted({min(d, len(jax.devices())) for d in options.devices})
    print(f"devices: {options.devices} of {len(jax.devices())} ({jax.default_backend()})")
    options.output.mkdir(parents=True, exist_ok=True)
    workload = workload_of(options.widths, options.quick)
    settings = vars(options) | {"output": None, "batch": workload.spec.batch}
    cases = [("strong", d, options.directions) for d in options.devices]
    cases += [("weak", d, options.per_device * d) for d in options.devices]
    sizes = dict.fromkeys(case[1:] for case in cases)  # each once
    done = {size: measure_scaling(workload, *size, options) for size in sizes}
    results = {"machine": machine(), "settings": settings}
    results["scaling"] = [{"kind": kind} | done[d, n] for kind, d, n in cases]
    results["traffic"] = measure_traffic(options) if options.devices != [1] else []
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "table.md").write_text(tables(results))
    print(f"\n{tables(results)}\nwritten to {options.output}")
    draw_figure(results, options.output / "scaling.png")


if __name__ == "__main__":
    main()
