"""How long attacks take next to the same attacks of ART and foolbox, on one victim.

The victim is a perceptron 784-256-128-10, trained on MNIST with a fixed seed; the same weights
answer in JAX and in torch. Rows are counted inside the victim, and success is judged by the script,
so every library is measured alike. A peer that is not installed is left out with a line. Writes
`summary.json` and `table.md`.

    python scripts/bench_attacks.py --output runs/bench_attacks
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_attack_libraries import (
    PACKAGES,
    SIZES,
    Contestant,
    Task,
    Weights,
    contestants,
    is_installed,
    logits_of,
    num_iterations,
    set_torch_threads,
)
from bench_population import machine

from experiments.lib.data import Split, load_dataset
from experiments.lib.errors import run_cli

BUDGETS = {"Square": 1000, "HopSkipJump": 4000}  # rows per image
QUICK_BUDGETS = {"Square": 60, "HopSkipJump": 300}


def train(split: Split, num_epochs: int) -> Weights:
    """Trains the victim with Adam.

    Args:
      split: images and labels.
      num_epochs: passes over them.
    """
    keys = jax.random.split(jax.random.key(0), len(SIZES))
    weights = [
        (jax.random.normal(key, (rows, columns)) * math.sqrt(2 / rows), jnp.zeros(columns))
        for key, rows, columns in zip(keys, SIZES[:-1], SIZES[1:], strict=False)
    ]
    optimizer = optax.adam(1e-3)
    images, labels = jnp.asarray(split.images.reshape(-1, SIZES[0])), jnp.asarray(split.labels)
    num_batches = len(labels) // 128

    def loss_of(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(weights, x), y)
        return losses.mean()

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        gradient = jax.grad(loss_of)(weights, images[batch], labels[batch])
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def epoch(carry: Any, key: jax.Array) -> Any:
        order = jax.random.permutation(key, len(labels))[: num_batches * 128]
        return jax.lax.scan(step, carry, order.reshape(num_batches, 128))[0]

    carry = (weights, optimizer.init(weights))
    for key in jax.random.split(keys[-1], num_epochs):
        carry = epoch(carry, key)
    return jax.tree.map(np.asarray, carry[0])


def build(options: argparse.Namespace) -> tuple[Task, dict[str, Any]]:
    """Trains the victim and chooses images; returns facts about both, too."""
    dataset = load_dataset("mnist", options.data_dir)
    weights = train(dataset.train, 1 if options.quick else 5)
    images = dataset.test.images[..., 0]
    predicted = np.asarray(logits_of(weights, images.reshape(-1, SIZES[0]))).argmax(axis=1)
    correct = predicted == dataset.test.labels
    chosen = np.flatnonzero(correct)[: options.images]
    budgets, few = (QUICK_BUDGETS, 2) if options.quick else (BUDGETS, 20)
    task = Task(weights, images[chosen], dataset.test.labels[chosen], budgets, few)
    facts = {
        "victim": "perceptron " + "-".join(map(str, SIZES)),
        "accuracy": float(correct.mean()),
        "budgets": budgets,
        "iterations_of_peers": num_iterations(budgets["HopSkipJump"]),
        "torch_threads": set_torch_threads(weights) if is_installed("torch") else None,
    }
    return task, facts


def attack_once(contestant: Contestant, task: Task, repetition: int) -> dict[str, Any]:
    """One attack on all its images: time, rows, and what came out."""
    counter = contestant.counter
    counter.rows, counter.calls, counter.seconds = 0, 0, 0.0
    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adversarial = contestant.run(repetition)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor}
    rows, calls, inside = counter.rows, counter.calls, counter.seconds
    number = contestant.num_images
    flat = adversarial.reshape(number, -1)
    offset = flat - task.images[:number].reshape(number, -1)
    labels = np.asarray(logits_of(task.weights, jnp.asarray(flat))).argmax(axis=1)
    success = labels != task.labels[:number]
    success &= np.abs(offset).max(axis=1) <= contestant.epsilon + 1e-5
    distances = np.linalg.norm(offset, axis=1)[success]
    return seconds | {
        "rows": rows,
        "calls": calls,
        "in_victim": inside,
        "success": float(success.mean()),
        "median_l2": float(np.median(distances)) if distances.size else None,
    }


def summarise(contestant: Contestant, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs after the first, and what follows from them."""
    radius = "" if math.isinf(contestant.epsilon) else f" {contestant.epsilon}"
    record = {
        "attack": contestant.attack + radius,
        "library": contestant.package,
        "images": contestant.num_images,
        "first_seconds": runs[0]["wall"],
        "runs": runs,
    }
    for name in runs[0]:
        values = [run[name] for run in runs[1:] if run[name] is not None]
        record[name] = float(np.median(values)) if values else None
    record["rows_per_image"] = record["rows"] / record["images"]
    record["ms_per_1000_rows"] = 1e6 * record["wall"] / record["rows"]
    record["outside_per_1000_rows"] = 1e6 * (record["wall"] - record["in_victim"]) / record["rows"]
    return record


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds, per image, time, processor time and rows over those of zojax on the torch victim."""
    for record in records:
        own = [r for r in records if r["library"] == "zojax, torch victim"]
        own = [r for r in own if r["attack"] == record["attack"]]
        for name in ("wall", "cpu", "rows"):
            per_image = [r[name] / r["images"] for r in (record, *own)]
            record[f"{name}_to_zojax"] = per_image[0] / per_image[1] if own else None


COLUMNS = (
    ("images", "images", "d"),
    ("first s", "first_seconds", ".2f"),
    ("s", "wall", ".2f"),
    ("CPU s", "cpu", ".2f"),
    ("rows / image", "rows_per_image", ".0f"),
    ("calls", "calls", ".0f"),
    ("ms / 1,000 rows", "ms_per_1000_rows", ".1f"),
    ("outside victim", "outside_per_1000_rows", ".1f"),
    ("success", "success", ".2f"),
    ("median l2", "median_l2", ".2f"),
    ("time / zojax", "wall_to_zojax", ".2f"),
    ("CPU / zojax", "cpu_to_zojax", ".2f"),
    ("rows / zojax", "rows_to_zojax", ".2f"),
)


def table(records: list[dict[str, Any]]) -> str:
    """Renders records as a Markdown table."""
    lines = [
        "| attack | library | " + " | ".join(name for name, _, _ in COLUMNS) + " |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for record in records:
        values = [(record[key], form) for _, key, form in COLUMNS]
        cells = ["" if value is None else format(value, form) for value, form in values]
        lines.append(f"| {record['attack']} | {record['library']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--attacks", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), help="default: all"
    )
    parser.add_argument(
        "--images", type=int, default=64, help="attacked at once (64); ART's HopSkipJump: 20"
    )
    parser.add_argument(
        "--repetitions", type=int, help="timed rounds after the first, which compiles (3; quick: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="small budgets, to see that it runs")
    parser.add_argument("--data-dir", help="where MNIST is prepared, searched first")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_attacks"), help="a folder")
    options = parser.parse_args()
    if options.repetitions is None:
        options.repetitions = 1 if options.quick else 3
    for name in ("images", "repetitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main() -> None:
    """Measures, prints and writes."""
    options = parse_arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    options.output.mkdir(parents=True, exist_ok=True)
    task, facts = build(options)
    versions = {}
    for package in ("torch", "foolbox", PACKAGES["art"]):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    facts |= {"quick": options.quick, "machine": machine(), "versions_of_peers": versions}
    chosen = contestants(task, options.attacks)
    runs: list[list[dict[str, Any]]] = [[] for _ in chosen]
    for repetition in range(options.repetitions + 1):
        for contestant, found in zip(chosen, runs, strict=True):
            found.append(attack_once(contestant, task, repetition))
            name = f"{contestant.attack} {contestant.epsilon}, {contestant.package}"
            print(f"  {repetition}: {name}: {found[-1]['wall']:.2f} s", flush=True)
        if repetition:  # after every round: an interrupted run keeps what it has
            records = [summarise(*pair) for pair in zip(chosen, runs, strict=True)]
            add_ratios(records)
            text = json.dumps(facts | {"results": records}, indent=1)
            (options.output / "summary.json").write_text(text + "\n")
            (options.output / "table.md").write_text(table(records) + "\n")
    print(f"\n{table(records)}\n\nwritten to {options.output}")


if __name__ == "__main__":
    run_cli(main)
