"""The command line of an experiment, made from its frozen configuration dataclass."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from experiments.lib.errors import UserError

Config = TypeVar("Config")

# Tyro's words on the left, plainer ones on the right.
_REWORDED = (
    (r"^Error parsing (--\S+): ", r"bad value for \1: "),
    (r"^Error parsing \S+: ", ""),  # A check of the configuration, which names its field itself.
    (r"invalid literal for int\(\) with base 10: ", "not a whole number: "),
    (r"\. Expected ", "; expected "),
)
_HINTS = {"Perhaps you meant:": "did you mean", "Argument helptext:": "use"}


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None,
    presets: Mapping[str, Mapping[str, Any]],
    defaults: Config | None = None,
) -> Config:
    """Reads the command line into a configuration.

    The dataclass declares every option; the docstring under a field is its help. An option
    `--preset NAME` (declare it as a field `preset: Literal[...]`) replaces defaults before the
    other options are read, wherever it stands on the command line.

    Args:
        config_class: A frozen dataclass with a default for every field.
        argv: Arguments without the program's name; None for those of this process.
        presets: For each preset the fields it changes.
        defaults: Values for options that are not given; those of the class if None. A resumed run
            passes its stored configuration.

    Raises:
        UserError: If an option is unknown or a value is not allowed.
        SystemExit: With code 0 after `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    defaults = config_class() if defaults is None else defaults
    overrides = presets.get(_preset_name(argv) or "", {})
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                config_class,
                prog=_program(),
                args=argv,
                default=dataclasses.replace(defaults, **overrides),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_sentence(messages.getvalue())) from None
    except ValueError as error:  # The configuration's own checks in __post_init__.
        raise UserError(str(error)) from error


def _preset_name(argv: Sequence[str]) -> str | None:
    # A missing or unknown name is left for tyro to report.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    return parser.parse_known_args(argv)[0].preset


def _program() -> str | None:
    """What the user typed: `python -m experiments.NAME` rather than the path of a file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None


def _one_sentence(box: str) -> str:
    """Reduces tyro's framed message to a sentence.

    The frame (of box characters, or of minus signs where the output is not UTF-8) holds a title and
    sections between rules: the message first, then such as `Perhaps you meant:` or
    `Argument helptext:`, whose next line is the option with what it accepts.
    """
    lines = [re.sub(r"^-{10,}$", "", line.strip(" │╭╮╰╯─")) for line in box.splitlines()]
    sections = [list(group) for filled, group in itertools.groupby(lines[1:], bool) if filled]
    message = " ".join(sections[0]).rstrip(".")
    for pattern, words in _REWORDED:
        message = re.sub(pattern, words, message)
    for section in sections[1:]:
        if section[0] in _HINTS:
            message += f"; {_HINTS[section[0]]} {section[1]}"
    return f"{message[:1].lower()}{message[1:]} (--help lists all options)"
