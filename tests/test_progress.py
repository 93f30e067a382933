"""Progress as a person meets it: redrawn in a terminal and a notebook, plain lines elsewhere."""

import io
import sys
import types

import pytest

from cmap_jax import progress
from cmap_jax.progress import LiveLine, format_seconds, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def test_a_file_gets_a_plain_line_every_30_seconds(clock, capsys):
    line = LiveLine()
    for second in range(0, 91, 10):
        clock.now = 1000.0 + second
        line.update(f"step {second}")
    assert capsys.readouterr().err == "step 30\nstep 60\nstep 90\n"
    line.say("evaluated")
    clock.now += 29
    line.update("too early")
    clock.now += 1
    line.update("step 130")
    assert capsys.readouterr().err == "evaluated\nstep 130\n"


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_REDRAW", 0.0)
    line = LiveLine()
    line.update("step 1", 0.1)
    line.update("step 2", 0.2)
    line.say("evaluated")
    written = terminal.getvalue()
    assert "\rstep 1" in written
    assert "\rstep 2" in written
    assert written.count("\n") == 1  # the redrawn line is erased
    assert written.endswith("\revaluated\n")


def test_a_notebook_counts_as_a_terminal(monkeypatch):
    assert not progress.can_redraw()
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert progress.can_redraw()
    del shell.kernel  # IPython in a pipe
    assert not progress.can_redraw()


def test_other_processes_show_nothing(clock, capsys):
    line = LiveLine(shown=False)
    clock.now += 100
    line.update("step 1")
    line.say("evaluated")
    line.clear()
    assert capsys.readouterr().err == ""


def test_track_without_a_terminal(clock, capsys):
    def work():
        for item in range(5):
            yield item
            clock.now += 20

    assert list(track(work(), 5, "checking", "images")) == list(range(5))
    assert capsys.readouterr().err == (
        "checking: 2 of 5 images, 1 min 00 s left\nchecking: 4 of 5 images, 20 s left\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
