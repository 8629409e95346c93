"""How a convolution and a max pooling are best written for a CPU, and inside which loop.

A training step of the reference network of `experiments.mnist_study`, by back-propagation, with
XLA's operations and with the same as shifted copies; as a loop in Python over a compiled step, and
as one compiled loop. All programs run in turn, again and again, so that noise of the machine meets
all alike. Prints a Markdown table.

    python scripts/bench_convolution.py
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.study_networks import max_pool


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def as_matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nine shifted copies side by side, times one matrix."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def window_pool(x: jax.Array) -> jax.Array:
    """XLA's reduction over windows."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "convolution, window reduction": (convolution, window_pool),
    "convolution, maximum of corners": (convolution, max_pool),
    "matrix product, maximum of corners": (as_matrix_product, max_pool),
}


def make_step(conv: Callable[..., Any], pool: Callable[..., Any], labels: jax.Array) -> Any:
    """Returns `(params, images) -> params`, one step of gradient descent."""

    def loss(params: Any, images: jax.Array) -> jax.Array:
        x = images
        for kernel in (params["conv0"], params["conv1"]):
            x = pool(jax.nn.relu(conv(x, kernel)))
        x = jax.nn.relu(x.reshape(len(x), -1) @ params["dense0"]) @ params["dense1"]
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    def step(params: Any, images: jax.Array) -> Any:
        return jax.tree.map(lambda w, g: w - 0.01 * g, params, jax.grad(loss)(params, images))

    return step


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--steps", type=int, default=20, help="steps per measurement")
    parser.add_argument("--repetitions", type=int, default=5, help="measurements, of which medians")
    options = parser.parse_args()
    shapes = {"conv0": (3, 3, 1, 16), "conv1": (3, 3, 16, 32), "dense0": (1568, 256)}
    shapes["dense1"] = (256, 10)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    images = jax.random.uniform(keys[0], (options.batch, 28, 28, 1))
    labels = jnp.arange(options.batch) % 10
    programs = {}
    for name, (conv, pool) in WAYS.items():
        step = make_step(conv, pool, labels)
        programs[name, "Python"] = _python_loop(jax.jit(step), options.steps)
        programs[name, "compiled"] = _compiled_loop(step, options.steps)
    for run in programs.values():
        jax.block_until_ready(run(params, images))
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for _ in range(options.repetitions):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(params, images))
            times[name].append((time.perf_counter() - start) / options.steps)
    print("| written as | loop in Python, ms per step | compiled loop, ms per step |")
    print("| --- | --- | --- |")
    for name in WAYS:
        cells = [f"{1e3 * np.median(times[name, loop]):.1f}" for loop in ("Python", "compiled")]
        print(f"| {name} | {' | '.join(cells)} |")


def _python_loop(step: Any, count: int) -> Any:
    def run(params: Any, images: jax.Array) -> Any:
        for _ in range(count):
            params = step(params, images)
        return params

    return run


def _compiled_loop(step: Any, count: int) -> Any:
    @jax.jit
    def run(params: Any, images: jax.Array, count: int) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, p: step(p, images), params)

    return lambda params, images: run(params, images, count)


if __name__ == "__main__":
    main()
