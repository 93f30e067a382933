"""`cmap sweep`: sweeps of stand-ins for runs, stopped, killed and resumed, and their tables."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from command_line import ROOT
from fake_data import fashion_iq as write_fashion_iq
from fake_results import fake_results, random_ranks

from cmap_jax.cli import command, devices, sweep
from cmap_jax.cli.devices import FoundDevices
from cmap_jax.evaluation.over_seeds import SeededResults, compare_over_seeds
from cmap_jax.files import write_json
from cmap_jax.sweeps import plot, process
from cmap_jax.sweeps.records import RunRecord

CONFIG = f"--config={ROOT / 'configs' / 'garments.py'}"
VARY = "--vary=config.model.variant=cmap,artemis"
FAKE = pathlib.Path(__file__).parents[1] / "fake_run.py"
_MOST = {"cmap": 40, "artemis": 25}  # ranks below it are drawn


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the results of each variant and seed."""
    folder = tmp_path_factory.mktemp("stored")
    for variant in _MOST:
        for seed in range(3):
            results = _stored(variant, seed, oracles={"shoes": {"text_oracle": {"R@10": 12.5}}})
            write_json(folder / f"{variant}-{seed}.json", results.to_dict())
    return folder


@pytest.fixture
def results(stored, tmp_path, monkeypatch):
    """A folder with the results that runs will have, where stand-ins take the place of runs."""
    folder = tmp_path / "results"
    shutil.copytree(stored, folder)
    monkeypatch.setattr(process, "program", lambda: [sys.executable, str(FAKE), str(folder)])
    monkeypatch.setattr(process, "_RETRY", 0.05)
    # tests/sweeps/test_plot.py draws real ones.
    monkeypatch.setattr(plot, "draw", lambda rows, title: f"{len(rows)} rows".encode())
    monkeypatch.setattr(sweep, "find_devices", lambda: FoundDevices("cpu", "a processor", 1))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def _stored(variant, seed, **more):
    return fake_results(random_ranks(seed + 10 * len(variant), _MOST[variant]), **more)


def _sweep(folder, *more):
    return command.main(["sweep", CONFIG, VARY, f"--workdir={folder}", *more])


def _starts(folder):
    """The number of starts of each run, by row and seed."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": len(path.read_text().splitlines())
        for path in folder.glob("*/*/starts.txt")
    }


def _means():
    """Mean and half of the range of R@10 by variant, from the ranks themselves."""
    recalls = {
        v: [100 * np.mean(random_ranks(s + 10 * len(v), most) < 10) for s in range(3)]
        for v, most in _MOST.items()
    }
    return {v: (np.mean(r), (max(r) - min(r)) / 2) for v, r in recalls.items()}


def test_a_sweep_and_its_table(results, tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert _sweep(folder) == 0
    printed = capsys.readouterr()
    assert "0 of 6 runs are complete" in printed.err
    assert printed.err.count("complete in") == 6
    assert set(_starts(folder).values()) == {1}
    cells = {v: f"{mean:.1f} ± {half:.1f}" for v, (mean, half) in _means().items()}
    text = (folder / "table.md").read_text()
    head, _, first, second, oracle = text.splitlines()[:5]
    assert head == "| shoes | R@1 | R@10 | R@50 | mR | seeds | minutes |"
    assert first.split(" | ")[0:3:2] == ["| variant=cmap", cells["cmap"]]
    assert second.split(" | ")[0:3:2] == ["| variant=artemis", cells["artemis"]]
    assert second.split(" | ")[5] == "3"
    assert oracle.startswith("| (text oracle) |  | 12.5 |")
    methods = {}
    for variant in _MOST:
        methods[variant] = SeededResults(variant)
        for seed in range(3):
            methods[variant].add(seed, _stored(variant, seed))
    expected = compare_over_seeds(methods["cmap"], methods["artemis"])["shoes"]["R@10"]
    low, high = expected.interval
    gain = expected.second - expected.first
    assert f"| {gain:+.1f} ({low:+.1f} to {high:+.1f}) * |" in text
    figures = json.loads((folder / "table.json").read_text())
    row = figures["rows"][1]
    assert row["overrides"] == ["--config.model.variant=artemis"]
    assert row["differences"]["shoes"]["R@10"]["interval"] == list(expected.interval)
    assert row["numbers"]["shoes"]["R@10"]["mean"] == pytest.approx(_means()["artemis"][0])
    assert row["made_by"]["0"]["git_commit"] == "abc"
    assert 0 < row["seconds"]["0"] < 60
    assert figures["machine"]["devices"] == "1 x a processor"
    assert (folder / "plot.png").read_bytes() == b"2 rows"
    # The same command has nothing to do, and `cmap compare` prints the same table.
    assert _sweep(folder) == 0
    again = capsys.readouterr()
    assert "6 of 6 runs are complete" in again.err
    assert set(_starts(folder).values()) == {1}
    assert command.main(["compare", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == again.out.partition("\n\ntable.md")[0].strip()
    assert command.main(["compare", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == figures["rows"]
    # Two sweeps are one table, whose rows say from where they are.
    assert command.main(["compare", str(folder), str(folder)]) == 0
    assert "sweep (2)/variant=artemis" in capsys.readouterr().out
    for paths, message in (
        ([f"{folder}/variant=cmap/seed-0"], "with what?"),
        ([str(folder), f"{folder}/variant=cmap/seed-0"], "is no sweep, as the others are"),
    ):
        assert command.main(["compare", *paths]) == 1
        assert message in capsys.readouterr().err


def test_a_failed_run_does_not_hold_up_the_others(results, tmp_path, capsys):
    """It is named with its log's last line, and the same command takes it up again."""
    folder, missing = tmp_path / "sweep", results / "artemis-1.json"
    missing.rename(tmp_path / "kept.json")
    assert _sweep(folder, "--seeds=2") == 1
    printed = capsys.readouterr()
    assert "failed: variant=artemis, seed 1: fake_run: no results for this run" in printed.err
    assert str(folder / "variant=artemis" / "seed-1.log") in printed.err
    assert "Not complete: variant=artemis, seed 1." in printed.out
    assert "A row has 1 seed" in printed.out
    (tmp_path / "kept.json").rename(missing)
    assert _sweep(folder, "--seeds=2") == 0
    assert _starts(folder) == {
        **{f"variant={v}/seed-0": 1 for v in _MOST},
        **{"variant=cmap/seed-1": 1, "variant=artemis/seed-1": 2},
    }
    assert "Not complete" not in (folder / "table.md").read_text()
    # Rows and seeds can be added, and are not all run at once.
    capsys.readouterr()
    assert _sweep(folder, "--only=variant=cmap") == 0
    assert "Not complete: variant=artemis, seed 2." in capsys.readouterr().out
    assert _starts(folder)["variant=cmap/seed-2"] == 1
    assert _sweep(folder, "--seeds=2") == 1
    assert "holds another sweep: seed is '2' there" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_continues(results, tmp_path, capsys, number):
    """The run at work ends in good order; its time is that of both attempts."""
    folder = tmp_path / "sweep"
    hold = results / "artemis-0.wait"
    hold.touch()

    def stop():
        _wait_for(folder / "variant=artemis" / "seed-0" / "run.lock")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert _sweep(folder, "--seeds=1") == 128 + number
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
    assert _sweep(folder, "--seeds=1") == 0
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
    _wait_for(workdir / "run.lock")
    waits = threading.Timer(1.0, hold.unlink)
    waits.start()
    assert _sweep(folder, "--seeds=1") == 0
    assert left.wait() == 0
    waits.join()
    _check_killed(folder)


def _check_killed(folder):
    assert _starts(folder) == {"variant=cmap/seed-0": 1, "variant=artemis/seed-0": 2}
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
    _wait_for(folder / "variant=artemis" / "seed-0" / "run.lock")
    assert _sweep(folder, "--seeds=1") == 1  # while the first one is at work
    assert f"in use by process {killed.pid}" in capsys.readouterr().err
    killed.kill()
    killed.wait()
    waits = threading.Timer(1.0, hold.unlink)
    waits.start()
    assert _sweep(folder, "--seeds=1") == 0
    waits.join()
    _check_killed(folder)


def test_one_run_on_each_device(results, tmp_path, monkeypatch):
    """Two runs are at work at once, each sees a device of its own, and no more than two are."""
    monkeypatch.setattr(sweep, "find_devices", lambda: FoundDevices("gpu", "a GPU", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    holds = [results / f"{variant}-{seed}.wait" for seed in (0, 1) for variant in _MOST]
    for hold in holds:
        hold.touch()
    folder, at_once = tmp_path / "sweep", []

    def watch():
        for row in ("cmap", "artemis"):
            _wait_for(folder / f"variant={row}" / "seed-0" / "run.lock")
        time.sleep(0.5)
        at_once.append(len(list(folder.glob("*/*/run.lock"))))
        for hold in holds:
            hold.unlink()

    thread = threading.Thread(target=watch)
    thread.start()
    assert _sweep(folder, "--seeds=2", "--per-device") == 0
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


_HYPER = """
from configs import garments

def get_config(arg=""):
    return garments.get_config(arg)

def get_hyper(hyper):
    weights = hyper.fixed("config.loss.preservation_weights", (0.0, 0.0, 0.0))
    without = hyper.product([hyper.fixed("name", "no loss"), weights])
    return hyper.chainit([hyper.fixed("name", "cmap"), without])
"""


def test_get_hyper_gives_the_rows(results, tmp_path, monkeypatch, capsys):
    file = tmp_path / "methods.py"
    file.write_text(_HYPER)
    monkeypatch.chdir(tmp_path)
    line = ["sweep", f"--config={file}:debug", "--seeds=1", "--vary=config.train.epochs=1,2"]
    assert command.main(line) == 0
    plan = json.loads((tmp_path / "runs" / "methods-debug-sweep" / "sweep.json").read_text())
    assert [row["name"] for row in plan["rows"]] == [
        *("cmap, epochs=1", "cmap, epochs=2"),
        *("no loss, epochs=1", "no loss, epochs=2"),
    ]
    flag = "--config.loss.preservation_weights=(0.0, 0.0, 0.0)"
    assert plan["rows"][2]["overrides"] == [flag, "--config.train.epochs=1"]
    for body, message in (
        ("return 3", "its get_hyper must return a list of dicts, not 3"),
        ("return hyper.nothing()", "raises AttributeError in line 8"),
        ("return [{}, {}]", "2 rows have the same name: methods"),
    ):
        capsys.readouterr()
        file.write_text(_HYPER.partition("    weights")[0] + f"    {body}\n")
        assert command.main(line[:3]) == 1
        assert message in capsys.readouterr().err


def test_the_commands_of_the_document(results, tmp_path, monkeypatch):
    """Each is run as it stands in docs/sweeps.md, and so is the config."""
    text = (ROOT / "docs" / "sweeps.md").read_text()
    monkeypatch.chdir(tmp_path)
    first, *compare = (
        shlex.split(line, comments=True)
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        for line in block.splitlines()
    )
    assert first[:2] == ["cmap", "sweep"]
    assert command.main(first[1:]) == 0
    shutil.copytree("runs/garments-sweep", "runs/more-sweep")
    assert len(compare) == 3
    for line in compare:
        assert command.main(line[1:]) == 0, line
    pathlib.Path("mine.py").write_text(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1])
    assert command.main(["sweep", "--config=mine.py", "--seeds=1", "--only=artemis"]) == 0
    plan = json.loads(pathlib.Path("runs/mine-sweep/sweep.json").read_text())
    assert [row["name"] for row in plan["rows"]] == [
        *("preservation_weights=(1.0, 1.0, 0.5), learning_rate=0.0005",),
        *("preservation_weights=(1.0, 1.0, 0.5), learning_rate=0.001",),
        *("preservation_weights=(0.0, 0.0, 0.0), learning_rate=0.0005",),
        *("preservation_weights=(0.0, 0.0, 0.0), learning_rate=0.001", "artemis"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=0"], "--seeds must be 1 or more, not 0"),
        (["--config.seed=3"], "--seeds sets config.seed"),
        (["--vary=config.seed=1,2"], "config.seed is set by --seeds"),
        (["--vary=config.train.epoch=1"], "there is no field config.train.epoch; nearest"),
        (["--vary=config.train.epochs=1,x"], "variant=cmap, epochs=x, seed 0: config.train.epochs"),
        (["--vary=config.train.epochs=0"], "config.train.epochs must be 1 or more, not 0"),
        (["--config.model.variant=cmp", "--vary=config.a=1"], "config.a"),
        (["--only=cmap"], "--only 'cmap': there is no such row, but variant=cmap; variant=artemis"),
        (["--workdir=gs://bucket/sweep"], "a sweep's folder is on a disk of this machine"),
        (["--per-device"], "--per-device is for machines with GPUs or TPUs"),
    ],
)
def test_mistakes_are_answered_before_any_run(results, tmp_path, capsys, flags, message):
    folder = tmp_path / "sweep"
    assert _sweep(folder, *flags) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not folder.exists()


def test_a_plot_needs_its_package(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _sweep(tmp_path / "sweep") == 1
    assert "pip install 'cmap_jax[plot]'" in capsys.readouterr().err


def test_a_folder_of_something_else(results, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert _sweep(tmp_path) == 1
    assert "holds a single run; name another folder" in capsys.readouterr().err
    sweep_folder = tmp_path / "sweep"
    (sweep_folder / "variant=cmap").mkdir(parents=True)
    (sweep_folder / "variant=cmap" / "seed-0.json").write_text('{"attempts": [3]}')
    assert _sweep(sweep_folder) == 1
    assert "seed-0.json: is no record of a run" in capsys.readouterr().err


def _wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.slow
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
    _wait_for(second / "seed-0" / "run.lock", seconds=300)
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
