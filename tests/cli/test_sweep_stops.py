"""`cmap sweep` stopped, killed and resumed; several runs at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from command_line import ROOT
from fake_data import fashion_iq as write_fashion_iq
from fake_sweep import CONFIG, FAKE, MOST, VARY, starts_of, sweep_in, wait_for

from cmap_jax.cli import command, devices, sweep
from cmap_jax.cli.devices import FoundDevices
from cmap_jax.sweeps.records import RunRecord


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_continues(results, tmp_path, capsys, number):
    """The run at work ends in good order; its time is that of both attempts."""
    folder = tmp_path / "sweep"
    hold = results / "artemis-0.wait"
    hold.touch()

    def stop():
        wait_for(folder / "variant=artemis" / "seed-0" / "run.lock")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert sweep_in(folder, "--seeds=1") == 128 + number
    thread.join()
    printed = capsys.readouterr()
    assert "the same command continues the sweep" in printed.err
    assert not list(folder.glob("*/*/run.lock"))
    assert not (folder / "run.lock").exists()
    record = folder / "variant=artemis" / "seed-0.json"
    (attempt,) = json.loads(record.read_text())["attempts"]
    assert attempt["status"] == 143
    # The first row's results are in the table already.
    assert "| variant=cmap |" in (folder / "table.md").read_text()
    hold.unlink()
    assert sweep_in(folder, "--seeds=1") == 0
    attempts = json.loads(record.read_text())["attempts"]
    assert [attempt["status"] for attempt in attempts] == [143, 0]
    row = json.loads((folder / "table.json").read_text())["rows"][1]
    assert row["seconds"]["0"] == pytest.approx(sum(a["seconds"] for a in attempts))


_KILLED = """
import sys
from cmap_jax.cli import command, sweep
from cmap_jax.cli.devices import FoundDevices
from cmap_jax.sweeps import process
process.program = lambda: [sys.executable, *sys.argv[1:3]]
sweep.find_devices = lambda: FoundDevices("cpu", "a processor", 1)
sys.exit(command.main(["sweep", *sys.argv[3:]]))
"""


def test_a_run_left_behind_is_waited_for(results, tmp_path):
    """As after `kill -9` of the sweep: its run goes on, and has begun and not ended by its record.

    Nobody else starts in the run's workdir, and its time is unknown.
    """
    folder = tmp_path / "sweep"
    hold = results / "artemis-0.wait"
    hold.touch()
    workdir = folder / "variant=artemis" / "seed-0"
    workdir.parent.mkdir(parents=True)
    RunRecord(workdir).begin()
    flags = [f"--workdir={workdir}", "--config.model.variant=artemis", "--config.seed=0"]
    left = subprocess.Popen([sys.executable, str(FAKE), str(results), *flags])
    wait_for(workdir / "run.lock")
    waits = threading.Timer(1.0, hold.unlink)
    waits.start()
    assert sweep_in(folder, "--seeds=1") == 0
    assert left.wait() == 0
    waits.join()
    _check_killed(folder)


def _check_killed(folder):
    assert starts_of(folder) == {"variant=cmap/seed-0": 1, "variant=artemis/seed-0": 2}
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert rows[0]["seconds"]["0"] > 0
    assert rows[1]["seconds"]["0"] is None  # nobody measured the attempt that was left behind
    assert "| 1 | unknown |" in (folder / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_sweep_continues(results, tmp_path, capsys):
    """Two sweeps cannot be at work at once; the run that a killed one leaves is waited for."""
    folder = tmp_path / "sweep"
    hold = results / "artemis-0.wait"
    hold.touch()
    arguments = [CONFIG, VARY, f"--workdir={folder}", "--seeds=1"]
    killed = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(FAKE), str(results), *arguments],
        stderr=subprocess.DEVNULL,
    )
    wait_for(folder / "variant=artemis" / "seed-0" / "run.lock")
    assert sweep_in(folder, "--seeds=1") == 1  # while the first one is at work
    assert f"in use by process {killed.pid}" in capsys.readouterr().err
    killed.kill()
    killed.wait()
    waits = threading.Timer(1.0, hold.unlink)
    waits.start()
    assert sweep_in(folder, "--seeds=1") == 0
    waits.join()
    _check_killed(folder)


def test_one_run_on_each_device(results, tmp_path, monkeypatch):
    """Two runs are at work at once, each sees a device of its own, and no more than two are."""
    monkeypatch.setattr(sweep, "find_devices", lambda: FoundDevices("gpu", "a GPU", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    holds = [results / f"{variant}-{seed}.wait" for seed in (0, 1) for variant in MOST]
    for hold in holds:
        hold.touch()
    folder, at_once = tmp_path / "sweep", []

    def watch():
        for row in ("cmap", "artemis"):
            wait_for(folder / f"variant={row}" / "seed-0" / "run.lock")
        time.sleep(0.5)
        at_once.append(len(list(folder.glob("*/*/run.lock"))))
        for hold in holds:
            hold.unlink()

    thread = threading.Thread(target=watch)
    thread.start()
    assert sweep_in(folder, "--seeds=2", "--per-device") == 0
    thread.join()
    assert at_once == [2]
    starts = {p.parent.parent.name: p for p in folder.glob("*/seed-0/starts.txt")}
    used = [starts[f"variant={v}"].read_text().split()[0] for v in ("cmap", "artemis")]
    assert used == ["5", "7"]
    assert json.loads((folder / "table.json").read_text())["machine"]["runs_at_once"] == 2


def test_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    slots = FoundDevices("gpu", "a GPU", 2).slots()
    assert slots == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [s["TPU_VISIBLE_CHIPS"] for s in FoundDevices("tpu", "v5e", 2).slots()] == ["0", "1"]
    with pytest.raises(ValueError, match="JAX finds 1 x cpu here: leave it out"):
        FoundDevices("cpu", "cpu", 1).slots()
    answer = subprocess.CompletedProcess([], 0, 'noise\n["gpu", "a GPU", 4]\n', "")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: answer)
    assert devices.find_devices() == FoundDevices("gpu", "a GPU", 4)
    answer.returncode, answer.stderr = 1, "Traceback\nRuntimeError: no such platform\n"
    with pytest.raises(ValueError, match="of this machine: RuntimeError: no such platform"):
        devices.find_devices()


@pytest.mark.endurance
def test_real_runs(tmp_path, capsys):
    """Two methods train for a step or two, the sweep is killed, and the rest is done after it."""
    data = write_fashion_iq(tmp_path / "data")
    arguments = [
        f"--config={ROOT / 'configs' / 'fashioniq.py'}:debug",
        f"--config.data.directory={data}",
        *("--config.train.batch_size=8", "--config.eval.batch_size=8", "--config.train.epochs=2"),
        *("--config.data.resize=40", "--config.data.crop=32", "--config.model.embed_dim=16"),
        *("--config.model.image.resnet.width=4", "--config.model.text.gru.word_dim=8"),
        *("--vary=config.model.variant=text_only,artemis", "--seeds=1"),
        f"--workdir={tmp_path / 'sweep'}",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    killed = subprocess.Popen(
        [sys.executable, "-m", "cmap_jax.cli.command", "sweep", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    second = tmp_path / "sweep" / "variant=artemis"
    wait_for(second / "seed-0" / "run.lock", seconds=300)
    killed.kill()
    killed.wait()
    done = subprocess.run(
        [sys.executable, "-m", "cmap_jax.cli.command", "sweep", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 2 runs are complete" in done.stderr
    assert "fashioniq/original, minus variant=text_only" in done.stdout
    figures = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert [row["seeds"] for row in figures["rows"]] == [[0], [0]]
    assert figures["rows"][1]["seconds"]["0"] is None
    assert command.main(["compare", str(tmp_path / "sweep")]) == 0
    assert capsys.readouterr().out.strip() in done.stdout
