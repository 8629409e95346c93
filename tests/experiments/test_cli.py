import contextlib
import dataclasses
import io
import re
from typing import Literal

import pytest

from experiments.lib.cli import parse
from experiments.lib.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains something small."""

    preset: Literal["default", "quick"] = "default"
    """Named settings."""
    dataset: Literal["auto", "digits"] = "auto"
    """Where the images come from."""
    steps: int = 100
    """Number of steps."""
    hidden: tuple[int, ...] = (32,)
    """Sizes of the hidden layers."""
    sigma: float = 0.1
    """Smoothing radius."""

    def __post_init__(self):
        if self.sigma <= 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")


PRESETS = {"quick": {"steps": 3, "hidden": (4, 4)}}


def _parse(command, **options):
    return parse(Config, command.split(), PRESETS, **options)


def test_defaults():
    assert _parse("") == Config()


@pytest.mark.parametrize("command", ["--preset quick --steps 7", "--steps 7 --preset=quick"])
def test_options_win_over_the_preset(command):
    assert _parse(command) == Config(preset="quick", steps=7, hidden=(4, 4))


def test_stored_configuration_as_defaults():
    stored = Config(steps=5, sigma=0.5)
    assert _parse("--sigma 0.2", defaults=stored) == Config(steps=5, sigma=0.2)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # It decides how tyro draws its frame.
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--dataset foo", ["'foo'", "--dataset", "'auto', 'digits'"]),
        ("--preset foo", ["'foo'", "--preset", "'default', 'quick'"]),
        ("--preset", ["--preset", "missing value"]),
        ("--steps x", ["'x'", "--steps INT", "whole number"]),
        ("--sigma x", ["'x'", "--sigma FLOAT"]),
        ("--datasett digits", ["--datasett", "did you mean --dataset {auto,digits}"]),
        ("extra", ["unrecognized", "extra"]),
        ("--sigma -1", ["sigma must be positive, got -1.0"]),
    ],
)
def test_errors_are_one_sentence(command, words, encoding, capsys):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stdout), pytest.raises(UserError) as error:
        _parse(command)
    message = str(error.value)
    assert "\n" not in message
    assert not re.search("[│─]|--- ", message)
    for word in words:
        assert word in message
    assert capsys.readouterr().err == ""


def test_help_shows_every_option_with_the_defaults_of_the_preset(capsys):
    with pytest.raises(SystemExit) as stop:
        _parse("--preset quick --help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Trains something small." in shown
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in shown
    assert "(default: 3)" in shown
