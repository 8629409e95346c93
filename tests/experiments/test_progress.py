import io
import sys

from experiments.lib.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_when_not_a_terminal(capsys):
    with Progress(2000, "mnist_es") as progress:
        progress.update(400, loss=0.4123, accuracy=0.9118, images_per_second=1.23e6)
        progress.update(800, queries_per_second=950.0)
    assert capsys.readouterr().out.splitlines() == [
        "step 400/2000  loss 0.412  val acc 91.2 %  1.2M images/s  0 s",
        "step 800/2000  950 queries/s  0 s",
    ]


def test_live_bar_on_a_terminal(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(10, "run") as progress:
        progress.update(10, loss=0.5, accuracy=0.25, queries_per_second=2e3)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    for words in ("run", "10/10", "loss 0.500", "val acc 25.0 %", "2.0k queries/s", "left"):
        assert words in shown
