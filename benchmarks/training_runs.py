"""Whole runs of main.py, one process after another, for the benchmarks that compare recalls."""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from harness import ROOT

RECALLS = ("R@1", "R@10", "R@50")
_RECORD = "benchmark.json"  # in a workdir whose run is complete: its flags and its seconds


def run(workdir: pathlib.Path, flags: Sequence[str]) -> dict:
    """Train and evaluate once, unless that is done; return the workdir's results and the seconds.

    A run that was stopped is continued. Its time is then unknown, None.

    Args:
        workdir: folder of the run.
        flags: main.py's, without --workdir.
    """
    workdir = workdir.resolve()  # main.py runs in another folder
    record = workdir / _RECORD
    if not record.exists():
        seconds = _train(workdir, flags)
        record.write_text(json.dumps({"flags": list(flags), "seconds": seconds}))
    done = json.loads(record.read_text())
    if done["flags"] != list(flags):
        sys.exit(
            f"{workdir} holds a run with other flags: {' '.join(done['flags'])}. Name another "
            "folder with --runs, or remove it"
        )
    results = json.loads((workdir / "evaluation.json").read_text())
    kept = {key: results[key] for key in ("step", "protocols", "facts")}  # and not every rank
    return {**kept, "seconds": done["seconds"]}


def _train(workdir: pathlib.Path, flags: Sequence[str]) -> float | None:
    """Run main.py to the end; return its seconds, None for a run that was stopped before."""
    continues = workdir.exists()
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}", *flags]
    print(" ".join(command), file=sys.stderr, flush=True)
    started = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if status:
        sys.exit(f"{workdir}: main.py ended with status {status}; the same command continues")
    return None if continues else time.monotonic() - started


def folder_name(method: str, seed: int) -> str:
    """Return the name of the workdir of a method and a seed."""
    return f"{method.replace(', ', '-').replace(' ', '_')}-{seed}"


def recalls(results: Sequence[Mapping], protocol: str) -> list[str]:
    """Return the mean of each of RECALLS over the seeds, ± half of the range."""
    return [_spread([r["protocols"][protocol][name] for r in results]) for name in RECALLS]


def minutes(results: Sequence[Mapping]) -> str:
    """Return the mean time of the runs that were not stopped, ± half of the range, in minutes."""
    known = [r["seconds"] / 60 for r in results if r["seconds"] is not None]
    return _spread(known) if known else "unknown"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"
