"""What the benchmarks share: sides measured in turns, each in a process of its own; tables; JSON.

A script measures one side when it is started with ``--side``; without, it starts itself for every
side in turns, so that a change of the machine's speed meets all of them alike.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# The method in PyTorch is written down in the tests.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Of both sides: without these every large block comes fresh from the kernel,
# zeroed page by page. Threads share an arena, for the others cannot hold large blocks.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 36),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_ARENA_MAX": "1",
}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--side", help=argparse.SUPPRESS)
    made.add_argument("--turns", type=int, default=3, help="processes of each side")
    made.add_argument("--out", type=pathlib.Path, help="JSON file for the figures")
    return made


def seconds(run: Callable[[], Any], repeats: int, warm_up: int = 2) -> list[float]:
    """Return how long ``run`` takes, each time, after a warm-up."""
    for _ in range(warm_up):
        run()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return by how much a run raises the process's resident memory at its peak (Linux)."""
    status = pathlib.Path("/proc/self/status")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def field(name: str) -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    run()
    return field("VmHWM") - before


def take_turns(sides: Sequence[str], turns: int, *arguments: str) -> dict[str, list[dict]]:
    """Run the calling script for every side, ``turns`` times each; return what each printed."""
    found: dict[str, list[dict]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in sides:
            sys.stderr.write(f"{side}, {turn + 1} of {turns}\n")
            environment = {**os.environ, **MEMORY, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                [sys.executable, sys.argv[0], f"--side={side}", *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 3) -> str:
    """Return the median with the least and the greatest value."""
    low, middle, high = (float(f(values)) * unit for f in (np.min, np.median, np.max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: pathlib.Path | None, content: Mapping[str, Any]) -> None:
    """Write figures with the machine and the commit they come from."""
    if path is None:
        return
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    machine = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": " ".join(sys.argv), "commit": commit, "machine": machine, **content}
    path.write_text(json.dumps(content, indent=1) + "\n")


def own_peak() -> int:
    """Return the peak of the process's resident memory so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
