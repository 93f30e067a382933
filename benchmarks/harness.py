"""Helpers of all benchmarks: sides measured in turns, each in its own process; tables; JSON.

A script that is started with ``--side`` measures that side. Without, it starts itself for every
side in turns, so that a change of the machine's speed affects all of them equally.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# The tests hold the method in PyTorch.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Environment of every side. Without it, every large block gets new pages from the kernel, which
# zeroes them. Threads share one arena, since only the first one can hold large blocks.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 36),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_ARENA_MAX": "1",
}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument(
        "--turns", type=int, default=3, help="processes for each side; default: %(default)s"
    )
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the figures to")
    return parser


def seconds(run: Callable[[], Any], repeats: int, warm_up: int = 2) -> list[float]:
    """Return the seconds of each of ``repeats`` runs, after ``warm_up`` others."""
    for _ in range(warm_up):
        run()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the rise of the process's resident memory at the peak of a run, in bytes (Linux)."""
    status = pathlib.Path("/proc/self/status")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def field(name: str) -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    run()
    return field("VmHWM") - before


def take_turns(sides: Sequence[str], turns: int, *arguments: str) -> dict[str, list[dict]]:
    """Run the calling script ``turns`` times for every side; return the objects they printed."""
    results: dict[str, list[dict]] = {side: [] for side in sides}
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
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 3) -> str:
    """Return the median with the least and the greatest value, each multiplied by ``unit``."""
    low, middle, high = (float(f(values)) * unit for f in (np.min, np.median, np.max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: pathlib.Path | None, content: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the command, the machine and the commit that made them.

    The option ``--out`` is left out of the command: where the file was written changes no figure.
    """
    if path is None:
        return
    commit = "unknown"
    if shutil.which("git"):
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    machine = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    path.parent.mkdir(parents=True, exist_ok=True)
    command = re.sub(r" --out[= ]\S+", "", " ".join(sys.argv))
    content = {"command": command, "commit": commit, "machine": machine, **content}
    path.write_text(json.dumps(content, indent=1) + "\n")


def own_peak() -> int:
    """Return the peak of the process's resident memory so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
