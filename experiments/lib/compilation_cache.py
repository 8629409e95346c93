"""Compiled programs are kept between runs, so that a second start is faster."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Uses the user's cache folder, unless JAX was given a folder already."""
    cache = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "zojax" / "jax"))
