"""Prepares a TFDS data set as ArrayRecord files, once: `python scripts/prepare_data.py mnist`.

Only this step needs TensorFlow (the extra `prepare`); reading the files does not.
"""

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

DEFAULT_DATA_DIR = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


class PrepareError(Exception):
    """What went wrong and what to do, in one sentence."""


def require(package: str) -> None:
    """Refuses to go on without `package`."""
    if importlib.util.find_spec(package) is None:
        raise PrepareError(
            f"preparing a data set needs {package}: run `pip install -e '.[prepare]'` first"
        )


def require_network(urls: Iterable[str]) -> None:
    """Finds an absent network at once; TFDS would retry for minutes."""
    if getproxies():  # then names are looked up by the proxy
        return
    for host in sorted({urlsplit(url).hostname or "" for url in urls} - {""}):
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise PrepareError(
                f"the download needs network access, and {host} cannot be found ({error.strerror})"
            ) from error


def prepare(name: str, data_dir: Path) -> Path:
    """Downloads and prepares data set `name` unless it is there; returns its folder."""
    require("tensorflow_datasets")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            require("tensorflow")
            require_network(builder.url_infos)
            builder.download_and_prepare()
    except PrepareError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        raise PrepareError(f"TFDS has no data set named {name!r}") from error
    except Exception as error:  # TFDS wraps network and disk failures in many types
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise PrepareError(
            f"could not prepare {name!r} in {data_dir} ({type(error).__name__}: {reason})"
        ) from error
    return Path(builder.data_path)


def main() -> int:
    """Prints where the data set is, or one sentence on why there is none (exit status 2)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a TFDS name: mnist, fashion_mnist, ...")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        help="where to put it (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    args = parser.parse_args()
    try:
        folder = prepare(args.name, args.data_dir.expanduser())
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.name} is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
