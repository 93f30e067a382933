"""Stand-ins for the runs of sweeps."""

import shutil
import sys

import pytest
from command_line import ROOT
from fake_sweep import FAKE, MOST, stored_of

from cmap_jax.cli import sweep
from cmap_jax.cli.devices import FoundDevices
from cmap_jax.files import write_json
from cmap_jax.sweeps import plot, process


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the results of each variant and seed."""
    folder = tmp_path_factory.mktemp("stored")
    for variant in MOST:
        for seed in range(3):
            results = stored_of(variant, seed, oracles={"shoes": {"text_oracle": {"R@10": 12.5}}})
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
