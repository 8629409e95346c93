"""How much `import zojax` adds to its dependencies: medians over fresh processes, interleaved."""

import argparse
import statistics
import subprocess
import sys
import time

CORE = "import jax, optax, chex, quax"
BOTH = f"{CORE}; import zojax"


def seconds(statement: str) -> float:
    """Wall time of a fresh Python process that runs `statement`, start-up included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints the two medians and their difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11, help="processes of each kind")
    repeats = parser.parse_args().repeats
    if repeats < 1:
        parser.error(f"--repeats must be at least 1, got {repeats}")

    seconds(BOTH)  # byte-compiles, and fills the file cache
    runs = [(seconds(CORE), seconds(BOTH)) for _ in range(repeats)]
    core, both = (statistics.median(column) for column in zip(*runs, strict=True))
    added = statistics.median(both - core for core, both in runs)
    print(f"{CORE}: {core:.3f} s")
    print(f"{BOTH}: {both:.3f} s")
    print(f"added by zojax: {1000 * added:.0f} ms (median of {repeats} paired differences)")


if __name__ == "__main__":
    main()
