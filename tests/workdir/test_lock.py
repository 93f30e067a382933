"""The lock on a workdir: refusals, stale locks, and locks that were taken over."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cmap_jax.workdir import lock as lock_lib
from cmap_jax.workdir.lock import WorkdirInUse, WorkdirLock, lock_workdir


def test_a_second_run_is_refused(tmp_path):
    with WorkdirLock(tmp_path):
        owner = json.loads((tmp_path / "run.lock").read_text())
        assert owner["process"] == os.getpid()
        with (
            pytest.raises(
                WorkdirInUse,
                match=rf"in use by process {os.getpid()} on {socket.gethostname()}, since .* "
                r"last heartbeat \d+ s ago.*--workdir",
            ),
            WorkdirLock(tmp_path),
        ):
            pass
    assert not (tmp_path / "run.lock").exists()
    with WorkdirLock(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    code = (
        "import os, sys, time; from cmap_jax.workdir.lock import WorkdirLock\n"
        f"WorkdirLock({str(tmp_path)!r}).__enter__(); print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(WorkdirInUse, match=f"process {process.pid}"), WorkdirLock(tmp_path):
        pass
    process.kill()
    process.communicate()
    with WorkdirLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


@pytest.mark.parametrize(("age", "refused"), [(5, True), (70, False)])
def test_another_host_counts_as_dead_after_a_minute(age, refused, tmp_path):
    owner = {"host": "elsewhere", "process": 1, "started": 0.0, "alive": time.time() - age}
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    if refused:
        with pytest.raises(WorkdirInUse, match="on elsewhere"), WorkdirLock(tmp_path):
            pass
    else:
        with WorkdirLock(tmp_path):
            pass


def test_another_container_counts_as_dead_after_a_minute(tmp_path):
    """It may have this host's name, and its processes are not seen from here."""
    with WorkdirLock(tmp_path):
        owner = json.loads((tmp_path / "run.lock").read_text())
    assert owner["system"]
    owner |= {"system": "elsewhere", "process": 2**22 + 1}
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    with pytest.raises(WorkdirInUse, match=f"process {2**22 + 1}"), WorkdirLock(tmp_path):
        pass


def test_a_run_that_was_suspended_finds_its_lock_taken_over(tmp_path):
    with WorkdirLock(tmp_path) as lock:
        lock.check()
        owner = json.loads((tmp_path / "run.lock").read_text())
        other = json.dumps(owner | {"token": "another's", "process": 7})
        (tmp_path / "run.lock").write_text(other)
        with pytest.raises(WorkdirInUse, match=r"taken over: .* in use by process 7 on"):
            lock.check()
    assert (tmp_path / "run.lock").read_text() == other  # its lock stays


def test_two_that_take_over_the_same_lock(tmp_path):
    """The later one must not remove what the earlier one has put in its place."""
    dead = {"host": "elsewhere", "process": 1, "alive": 0.0, "token": "the dead one's"}
    with WorkdirLock(tmp_path) as lock:
        assert not WorkdirLock(tmp_path)._remove(dead)
        lock.check()
    assert not list(tmp_path.iterdir())


def test_the_lock_has_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_lib, "_INTERVAL", 0.05)
    with WorkdirLock(tmp_path):
        first = json.loads((tmp_path / "run.lock").read_text())["alive"]
        time.sleep(0.4)
        assert json.loads((tmp_path / "run.lock").read_text())["alive"] > first
    (tmp_path / "run.lock").write_text("{")  # cut off a moment ago: may be being written
    with pytest.raises(WorkdirInUse), WorkdirLock(tmp_path):
        pass
    os.utime(tmp_path / "run.lock", (0, 0))
    with WorkdirLock(tmp_path):
        pass


def test_a_refused_lock_ends_all_processes(tmp_path, monkeypatch):
    """Process 0 alone locks and knows why not; the others get no lock, and end with it."""
    with lock_workdir(tmp_path) as lock:
        lock.check()
    is_refused = False
    monkeypatch.setattr(lock_lib.jax, "process_index", lambda: 1)
    monkeypatch.setattr(lock_lib.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        lock_lib.multihost_utils, "broadcast_one_to_all", lambda own: own or is_refused
    )
    with lock_workdir(tmp_path) as lock:
        assert lock is None
        assert not list(tmp_path.iterdir())
    is_refused = True
    with (
        pytest.raises(OSError, match=f"process 0 could not lock {tmp_path}, and says why"),
        lock_workdir(tmp_path),
    ):
        pytest.fail("it went on")
