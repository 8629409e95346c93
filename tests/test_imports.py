"""`import zojax` brings the core dependencies and no extra."""

import subprocess
import sys

EXTRAS = {
    "experiments",
    "flax",
    "matplotlib",
    "optuna",
    "orbax",
    "rich",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tyro",
}


def imported(statement: str) -> set[str]:
    """Top-level modules in a fresh process after `statement`."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.split())


def test_import_loads_no_extra():
    # Some core packages load an extra by themselves (quax loads rich): that is not ours.
    core = imported("import jax, numpy, optax, chex, quax")
    assert "jax" in core
    ours = imported("import zojax")
    assert "zojax" in ours
    assert not (ours - core) & EXTRAS
