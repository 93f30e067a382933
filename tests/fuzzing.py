"""Helpers of the tests of damaged data sets: many examples, each on a folder that is restored."""

import contextlib
import os
import pathlib
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = 20  # that a case may take; it takes milliseconds


def few_or_many(few: int, many: int):
    """Give a test few ``examples``, and many in the slow part."""
    return pytest.mark.parametrize(
        "examples", [few, pytest.param(many, marks=pytest.mark.slow)], ids=["few", "many"]
    )


def explore(case, examples: int):
    """Call ``case(data)`` on as many examples, the same in every run."""
    options = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    options(given(st.data())(case))()


@contextlib.contextmanager
def restored(path: pathlib.Path):
    """Give a file's bytes; at the end the file is there again, whatever has taken its place."""
    content = path.read_bytes()
    try:
        yield content
    finally:
        remove(path)
        path.write_bytes(content)


def remove(path: pathlib.Path):
    """Remove what is in a place: a file, an empty folder, a link or nothing."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def time_limit():
    """Fail where something hangs."""

    def stop(*_):
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def put_something_else(draw, path: pathlib.Path) -> str:
    """Put no readable file where a file was; return what is there now."""
    kind = draw(st.sampled_from(["nothing", "folder", "dangling", "loop", "pipe", "huge"]))
    remove(path)
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)  # takes no room
    return kind
