"""The lock on a workdir: refusals, stale locks, and locks that were taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from cmap_jax.workdir import lock as lock_lib
from cmap_jax.workdir.lock import WorkdirInUse, WorkdirLock, lock_workdir


@pytest.fixture(autouse=True)
def brief_watch(monkeypatch):
    """Watch a lock that seems stale for a moment only."""
    monkeypatch.setattr(lock_lib, "_WATCH", 0.15)


def _lock_of_another_host(folder, **fields):
    owner = {
        "host": "elsewhere",
        "system": "elsewhere",
        "process": 1,
        "process_started": "1",
        "started": 0.0,
        "alive": time.time(),
        "token": "theirs",
    }
    (folder / "run.lock").write_text(json.dumps(owner | fields))


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


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_living_run_whose_clock_is_wrong_keeps_its_lock(skew, tmp_path, caplog):
    """Its lock looks an hour old, or is of the future, and is renewed while it is watched."""
    _lock_of_another_host(tmp_path, alive=time.time() + skew)
    renewal = threading.Timer(
        0.05, _lock_of_another_host, [tmp_path], {"alive": time.time() + skew + 10}
    )
    renewal.start()
    when = r"\d+ s ahead of this system's clock" if skew > 0 else r"\d+ s ago"
    message = rf"process 1 on elsewhere, .*last heartbeat {when}.*taken over at a start more than"
    with pytest.raises(WorkdirInUse, match=message), WorkdirLock(tmp_path):
        pass
    renewal.join()
    assert "is watched for 0 s, since the clocks may differ" in caplog.text
    assert json.loads((tmp_path / "run.lock").read_text())["token"] == "theirs"


def test_a_lock_of_the_future_that_nobody_renews_is_taken_over(tmp_path):
    _lock_of_another_host(tmp_path, alive=time.time() + 1e8)
    with WorkdirLock(tmp_path) as lock:
        lock.check()


def test_a_lock_without_a_start_time(tmp_path):
    """Void where its process does not exist; else it says that a file may have to be removed."""
    with WorkdirLock(tmp_path):
        owner = json.loads((tmp_path / "run.lock").read_text())
    del owner["process_started"]
    (tmp_path / "run.lock").write_text(json.dumps(owner))
    with (
        pytest.raises(WorkdirInUse, match=f"another program today, remove {tmp_path}/run.lock"),
        WorkdirLock(tmp_path),
    ):
        pass
    (tmp_path / "run.lock").write_text(json.dumps(owner | {"process": 2**31 - 1}))
    with WorkdirLock(tmp_path) as lock:
        lock.check()


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b'{"alive": true}',
        b'{"alive": 1e999, "started": 1e999, "process": 1}',
        b'{"alive": 0, "started": 1e300, "process": 1}',
        b'{"alive": 0, "started": 0, "process": 1' + b"0" * 400 + b"}",
        b'{"alive": ' + b"9" * 5000 + b"}",
        b'{"alive": 0, "started": 0, "process": "me"}',
        b'{"alive": 0, "started": 0, "process": 1, "host": {}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_lock_of_any_content(content, tmp_path):
    """It counts from its last change, as one that is being written."""
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with (
        pytest.raises(WorkdirInUse, match=f"{path} does not say by which run it was written"),
        WorkdirLock(tmp_path),
    ):
        pass
    os.utime(path, (0, 0))
    with WorkdirLock(tmp_path) as lock:
        lock.check()


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.lock")
    with pytest.raises(WorkdirInUse, match="does not say by which run"), WorkdirLock(tmp_path):
        pass
    os.utime(tmp_path / "run.lock", (0, 0))
    with WorkdirLock(tmp_path) as lock:
        lock.check()


def test_a_link_to_nothing_in_place_of_a_lock(tmp_path):
    (tmp_path / "run.lock").symlink_to("nothing")
    with pytest.raises(WorkdirInUse, match=f"remove {tmp_path}/run.lock"), WorkdirLock(tmp_path):
        pass


def test_a_clock_that_jumps_costs_a_run_nothing(tmp_path, monkeypatch):
    """Its process can be looked up on its own system, whatever the heartbeats say."""
    monkeypatch.setattr(lock_lib, "_INTERVAL", 0.02)
    clock = time.time
    with WorkdirLock(tmp_path) as lock:
        for jump in (1e6, -1e6, 0):
            monkeypatch.setattr(time, "time", lambda jump=jump: clock() + jump)
            with (
                pytest.raises(WorkdirInUse, match="if it ends or is killed"),
                WorkdirLock(tmp_path),
            ):
                pass
            time.sleep(0.1)
            lock.check()
