"""Errors the user can fix, shown as one sentence instead of a traceback."""

import errno
import sys
from collections.abc import Callable

# A disk or path that cannot be written is the user's to fix; any other OSError is a bug of ours
# and keeps its traceback.
_DISK_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class UserError(Exception):
    """Something the user can fix; the message is one clear sentence."""


def run_cli(main: Callable[[], None]) -> None:
    """Runs a command-line program and turns the user's errors into one line on stderr.

    The process exits with code 2 after a `UserError` or an unwritable disk, and with code 130 after
    Ctrl-C, in which case the arguments of the `KeyboardInterrupt`, if any, say how to resume.
    Every other exception is a bug and keeps its traceback.

    Args:
        main: The program, without arguments.

    Raises:
        SystemExit: After an error of the user's, or Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        _exit(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _exit(f"error: {describe_disk_error(error)}", 2)
    except KeyboardInterrupt as interrupt:
        _exit(f"interrupted: {interrupt}" if interrupt.args else "interrupted", 130)


def describe_disk_error(error: OSError) -> str:
    """Says in one sentence what could not be written, and why."""
    reason = (error.strerror or str(error)).lower()
    return (
        f"cannot write {error.filename}: {reason}" if error.filename else f"cannot write: {reason}"
    )


def _exit(message: str, code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)
