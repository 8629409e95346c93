"""What every test shares: CPU devices, a compilation cache, strict promotion, prepared data."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported; processes that tests start inherit all of it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Eight simulated devices on two busy cores may wait for each other longer than the 40 s after which
# XLA ends the process; older versions do not know the setting, and end it for that.
if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 9):
    _patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_patience}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # the first one is used unless a test asks for more

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 20_000  # the kernel's limit is 65,530; a large test adds a few hundred


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs before a process has more of them than the kernel will map.

    Every program that XLA compiles for the CPU stays mapped while its function is cached; a worker
    that reaches the limit (`vm.max_map_count`) is ended by a signal in whatever test comes next.
    """
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def strict_promotion():
    """An implicit change of dtype or rank is an error while the test runs."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def tfds_data_dir() -> Path:
    """The folder with prepared MNIST; the test is skipped where there is none."""
    places = [os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    folders = [Path(place).expanduser() for place in places if place]
    for folder in folders:
        if any(folder.glob("mnist/*/dataset_info.json")):
            return folder
    pytest.skip(
        f"no prepared MNIST in {' or '.join(map(str, folders))}: set TFDS_DATA_DIR, "
        "or run `python scripts/prepare_data.py mnist`"
    )
