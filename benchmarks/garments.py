"""Recalls on the rendered garments: CMAP beside its ablations and the shortcuts, over seeds.

python benchmarks/garments.py --runs=runs/benchmark --out=benchmarks/results/garments.json

Every run is `python main.py --config=configs/garments.py` with the overrides below. A complete run
is not repeated, so that the script can be stopped and started again. It prints a Markdown table of
means over the seeds, ± half of the range.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

METHODS = {
    "cmap": (),
    "cmap, no preservation loss": ("--config.loss.preservation_weights=(0.,0.,0.)",),
    "artemis": ("--config.model.variant=artemis",),
    "text_only": ("--config.model.variant=text_only",),
    "image_only": ("--config.model.variant=image_only",),
}
PROTOCOLS = ("garments/test", "garments/all")
RECALLS = ("R@1", "R@10", "R@50")


def run(name: str, overrides: tuple[str, ...], seed: int, runs: pathlib.Path) -> dict:
    """Train and evaluate once; return the workdir's results and the seconds the run took."""
    workdir = runs / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    evaluation, duration = workdir / "evaluation.json", workdir / "seconds.json"
    if not evaluation.exists():
        started = time.monotonic()
        command = [
            *(sys.executable, "main.py", "--config=configs/garments.py", f"--workdir={workdir}"),
            *(f"--config.seed={seed}", *overrides),
        ]
        print(" ".join(command), file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        duration.write_text(json.dumps(time.monotonic() - started))
    seconds = json.loads(duration.read_text()) if duration.exists() else None
    return {**json.loads(evaluation.read_text()), "seconds": seconds, "seed": seed}


def spread(values: list[float]) -> str:
    """Return the mean and half the range of a number over the seeds."""
    return f"{np.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table of recalls, one row for each method."""
    heads = [f"{p} {r}" for p in PROTOCOLS for r in RECALLS]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, turns in results.items():
        cells = [spread([t["protocols"][p][r] for t in turns]) for p in PROTOCOLS for r in RECALLS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    oracles = next(iter(results.values()))[0]["facts"]["oracles"]
    for name in oracles[PROTOCOLS[0]]:
        cells = [f"{oracles[p][name][r]:.1f}" for p in PROTOCOLS for r in RECALLS]
        lines.append(f"| ({name.replace('_', ' ')}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/benchmark"))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    results: dict[str, list[dict]] = {name: [] for name in arguments.methods}
    for seed in range(arguments.seeds):  # seed by seed, so that an early table has every method
        for name in arguments.methods:
            results[name].append(run(name, METHODS[name], seed, arguments.runs))
    print(table(results))
    if arguments.out:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"commit": commit, "cores": os.cpu_count(), "results": results}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
