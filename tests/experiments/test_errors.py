import errno

import pytest

from experiments.lib.errors import UserError, run_cli


def _raising(error):
    def main():
        raise error

    return main


def test_returns_when_nothing_fails():
    run_cli(lambda: None)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("sigma must be\npositive"), 2, "error: sigma must be positive\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: cannot write runs/x: no space left on device\n",
        ),
        (KeyboardInterrupt("resume with --resume X"), 130, "interrupted: resume with --resume X\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_one_line_and_an_exit_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as stop:
        run_cli(_raising(error))
    assert stop.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EBADF, "a bug")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_cli(_raising(error))
