"""Sweeps whose runs are stand-ins; the fixture `results` of tests/cli puts them in place."""

import pathlib
import time

from command_line import ROOT
from fake_results import fake_results, random_ranks

from cmap_jax.cli import command

CONFIG = f"--config={ROOT / 'configs' / 'garments.py'}"
VARY = "--vary=config.model.variant=cmap,artemis"
FAKE = pathlib.Path(__file__).with_name("fake_run.py")
MOST = {"cmap": 40, "artemis": 25}  # ranks below it are drawn


def stored_of(variant, seed, **more):
    return fake_results(random_ranks(seed + 10 * len(variant), MOST[variant]), **more)


def sweep_in(folder, *more):
    return command.main(["sweep", CONFIG, VARY, f"--workdir={folder}", *more])


def starts_of(folder):
    """The number of starts of each run, by row and seed."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": len(path.read_text().splitlines())
        for path in folder.glob("*/*/starts.txt")
    }


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
