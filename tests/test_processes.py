"""Two real processes that are one run: as one with two devices; killed, stopped, and resumed."""

import contextlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import QUICK_TO_COMPILE, ROOT, call, run
from fake_data import fashion_iq as write_fashion_iq
from stored_runs import arrays, assert_same, results

_HEARTBEAT = 10  # seconds


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start main.py in a workdir, as so many processes of so many devices each.

    ``own`` has an argument for each process alone; the last of several values counts.
    """
    data = write_fashion_iq(tmp_path_factory.mktemp("data"))
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, processes=1, devices=1, *more, own=()):
        arguments = [
            f"--config={ROOT / 'configs' / 'fashioniq.py'}:debug",
            f"--config.data.directory={data}",
            f"--workdir={workdir}",
            f"--compilation_cache={cache}",
            "--config.train.batch_size=8",
            "--config.eval.batch_size=8",
            "--config.train.epochs=6",
            "--config.train.log_every_steps=2",
            "--config.data.resize=40",
            "--config.data.crop=32",
            "--config.model.image.resnet.width=8",  # some parameters are large enough to be split
            "--config.model.embed_dim=16",
            "--config.model.text.gru.word_dim=8",
            "--config.optimizer.warmup_steps=2",
            f"--config.distributed.heartbeat_timeout_seconds={_HEARTBEAT}",
            *more,
        ]
        port = _free_port()
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}",
            "PYTHONPATH": str(ROOT),
        }
        started = []
        for index in range(processes):
            line = [*arguments, *filter(None, own[index : index + 1])]
            if processes > 1:
                line += [
                    f"--coordinator=localhost:{port}",
                    f"--process_count={processes}",
                    f"--process_index={index}",
                ]
            started.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "main.py"), *line],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        return started

    return start


def _free_port():
    with contextlib.closing(socket.create_server(("localhost", 0))) as server:
        return server.getsockname()[1]


def _end(processes, timeout=300):
    """Wait for all; return what each wrote, (stdout, stderr)."""
    return [process.communicate(timeout=timeout) for process in processes]


def _wait_for(path, processes):
    deadline = time.monotonic() + 300
    while not path.exists():
        ended = [p for p in processes if p.poll() is not None]
        assert not ended, ended[0].communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    (process,) = start(workdir, 1, 2)
    ((_, errors),) = _end([process])
    assert process.returncode == 0, errors[-3000:]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("--config.data.directory=/nowhere", "process 1 of 2: /nowhere: no such folder"),
        ("--workdir=/proc/nowhere", "process 1 of 2: /proc/nowhere: "),
    ],
)
def test_a_fault_in_one_process_ends_both(start, tmp_path, fault, message):
    since = time.monotonic()
    processes = start(tmp_path, 2, 1, own=("", fault))
    written = _end(processes)
    assert time.monotonic() - since < _HEARTBEAT + 60
    assert message in written[1][1]
    assert "another task died" in written[0][1] or "lost another process" in written[0][1]
    assert all(process.returncode != 0 for process in processes)


@pytest.mark.slow
def test_processes_with_different_configs_are_refused(start, tmp_path):
    processes = start(tmp_path, 2, 1, own=("", "--config.seed=3"))
    written = _end(processes)
    assert [process.returncode for process in processes] == [1, 1]
    for _, errors in written:
        assert "process 1 of the run got another config than process 0" in errors
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_stopped_and_resumed_as_two_processes(start, alone, tmp_path):
    """SIGTERM to one stops both at one step, and `start && next` with them.

    To the end, the run is that of one process.
    """
    processes = start(tmp_path, 2)
    _wait_for(tmp_path / "checkpoints" / "3", processes)
    processes[1].send_signal(signal.SIGTERM)
    written = _end(processes)
    assert [p.returncode for p in processes] == [143, 143], written[0][1][-3000:]
    said = {err.strip().splitlines()[-1] for _, err in written if "stopped at step" in err}
    steps = {line.split("stopped at step ")[1].split()[0] for line in said}
    assert len(steps) == 1
    assert (tmp_path / "checkpoints" / steps.pop()).is_dir()

    processes = start(tmp_path, 2)
    written = _end(processes)
    assert [p.returncode for p in processes] == [0, 0], written[0][1][-3000:]
    assert_same(alone, tmp_path)
    # Once: the table, the parameters, the curves.
    assert "fashioniq/original" in written[0][0]
    assert "fashioniq/original" not in written[1][0]
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(
    "killed",
    [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.endurance)],
)
def test_a_killed_process_ends_the_other_and_the_run_goes_on(start, alone, tmp_path, killed):
    """On other devices: one process with four, parameters split over two of them."""
    processes = start(tmp_path, 2, 1, "--config.mesh.fsdp=2")
    _wait_for(tmp_path / "checkpoints" / "3", processes)
    processes[killed].kill()
    since = time.monotonic()
    written = _end(processes)
    assert time.monotonic() - since < _HEARTBEAT + 15
    survivor = 1 - killed
    assert processes[survivor].returncode not in (0, None)
    # JAX's own words where its service noticed first, else ours.
    assert (
        "lost another process of the run" in written[survivor][1]
        or "another task died" in written[survivor][1]
    ), written[survivor][1][-3000:]
    if survivor == 0:
        return  # the content of the workdir is not a matter of who was killed

    (process,) = start(tmp_path, 1, 4, "--config.mesh.fsdp=2")
    ((_, errors),) = _end([process])
    assert process.returncode == 0, errors[-3000:]
    assert "continuing with steps" in errors
    (step, ours), (other_step, theirs) = (
        arrays(w, "checkpoints", "state") for w in (tmp_path, alone)
    )
    assert step == other_step
    for name, array in ours.items():
        if not name.startswith("['params']"):
            continue
        # Another order of summation: AdamW carries roundings of small gradients into steps.
        difference = np.linalg.norm(array - theirs[name]) / np.linalg.norm(theirs[name])
        assert difference < 0.02, (name, difference)
    assert set(results(tmp_path)["protocols"]) == set(results(alone)["protocols"])


def _save_often(coordinator, index, workdir, steps):
    """Save many states, restore one before a damaged one, and stop, as one of two processes."""
    import jax
    from jax.experimental import multihost_utils

    jax.distributed.initialize(coordinator, 2, index, heartbeat_timeout_seconds=_HEARTBEAT)
    from cmap_jax.sharding import make_mesh, replicated
    from cmap_jax.training.checkpointing import Checkpoints
    from cmap_jax.training.progress import Progress
    from cmap_jax.training.stopping import StopRequest
    from cmap_jax.training.train_state import TrainState

    everywhere = replicated(make_mesh())

    def state_of(step):
        state = TrainState(
            params={"w": np.full((64, 64), step, np.float32)},
            batch_stats={},
            opt_state={"mu": np.zeros(64, np.float32)},
            step=np.int32(step),
            skipped=np.int32(0),
        )
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda at: x[at]), state
        )

    def save(checkpoints, step):
        checkpoints.save_best(state_of(step))
        checkpoints.save(state_of(step), Progress(best_step=step))

    with StopRequest() as stop:
        checkpoints = Checkpoints(workdir, 3, "a run")
        for step in steps:
            save(checkpoints, step)
            assert not stop()
        checkpoints.close()

        if index == 0:
            for path in pathlib.Path(workdir, "checkpoints", str(steps[-1])).rglob("d"):
                shutil.rmtree(path)
        multihost_utils.sync_global_devices("damaged")
        checkpoints = Checkpoints(workdir, 3, "a run")
        read = checkpoints._restore

        def read_with_a_fault(step, like):
            found = read(step, like)
            if (index, step) == (1, steps[-2]):
                raise ValueError("one process alone finds a fault")
            return found

        checkpoints._restore = read_with_a_fault
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state_of(0)
        )
        state, progress = checkpoints.restore(like)
        assert int(state.step) == progress.best_step == steps[-3]
        if index == 1:  # while they are saving
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        save(checkpoints, steps[-1])
        checkpoints.close()
        calls = 0
        while not stop():
            calls += 1
            time.sleep(0.01)
            assert calls < 3000


@pytest.mark.slow
def test_states_and_best_variables_are_written_at_once_by_two_processes(tmp_path):
    """A write of one process in the background does not wait for the other's, or fail it.

    Damaged ones are moved away once, for both, whoever finds it; and both stop where one is asked.
    """
    spawn = multiprocessing.get_context("spawn")
    coordinator = f"localhost:{_free_port()}"
    processes = [
        spawn.Process(
            target=_save_often, args=(coordinator, index, str(tmp_path), range(1000, 31000, 1000))
        )
        for index in range(2)
    ]
    for process in processes:
        process.start()
    processes[0].join(timeout=150)
    processes[1].join(timeout=10)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert ended == [0, 0]
    for folder in ("checkpoints", "best"):
        assert {p.name for p in (tmp_path / folder).iterdir()} == {"28000", "30000"}
    damaged = (tmp_path / "damaged" / "checkpoints").iterdir()
    assert {p.name for p in damaged} == {"29000", "30000"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--process_count=2",), "need --coordinator=HOST:PORT, --process_count=N and"),
        (
            ("--coordinator=localhost", "--process_count=2", "--process_index=0"),
            "--coordinator must be HOST:PORT, not 'localhost'",
        ),
        (
            ("--coordinator=localhost:1", "--process_count=2", "--process_index=2"),
            "--process_index must be 0 to 1",
        ),
        (("--cluster", "--process_count=2"), "give one or the other"),
        # Where JAX computes already, as in this process, it asks no cluster.
        pytest.param(("--cluster",), "--cluster found no cluster to ask", marks=pytest.mark.slow),
    ],
)
def test_wrong_flags_get_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = run if flags == ("--cluster",) else call
    done = start(f"--config={ROOT / 'configs' / 'garments.py'}:debug", *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
