"""Random keys: typed threefry keys only, and a domain of their own for noise."""

import jax

from zojax.types import PRNGKey

# Separates noise from whatever else a user draws with the same key: normal(key, (d,)) equals
# row 0 of normal(key, (n, d)), so parameters drawn from the noise key would correlate with it.
_NOISE_DOMAIN = 0x7A6F6A78  # "zojx"


def check_key(key: PRNGKey) -> None:
    """Raises unless `key` is one typed threefry key.

    Args:
      key: the argument to check.

    Raises:
      TypeError: for a legacy uint32 key or anything that is not a key.
      ValueError: for a batch of keys, or a key of another implementation. Under `rbg` and
        `unsafe_rbg`, batched and sequential draws differ, so an estimate would depend on the
        chunk size and on the number of devices.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed key made by jax.random.key(seed), got {key!r}")
    if key.shape != ():
        raise ValueError(f"key must be a single key of shape (), got shape {key.shape}")
    implementation = str(jax.random.key_impl(key))
    if "threefry" not in implementation:
        raise ValueError(
            f"key must use the threefry implementation, got {implementation!r}: its batched and "
            "sequential draws differ, so results would depend on chunking and devices; use "
            "jax.random.key(seed, impl='threefry2x32')"
        )


def noise_key(key: PRNGKey) -> PRNGKey:
    """Returns the key all directions of an estimate are derived from.

    Args:
      key: the estimate's key, a typed key of shape ().
    """
    return jax.random.fold_in(key, _NOISE_DOMAIN)
