"""Recalls on the rendered garments: CMAP beside its ablations and the shortcuts, over seeds.

python benchmarks/garments.py --runs=runs/benchmark --out=benchmarks/results/garments.json

Every run is `python main.py --config=configs/garments.py` with the overrides below. A complete run
is not repeated, so that the script can be stopped and started again. It prints a Markdown table of
means over the seeds, ± half of the range.
"""

import argparse
import pathlib

import harness
import training_runs

METHODS = {
    "cmap": (),
    "cmap, no preservation loss": ("--config.loss.preservation_weights=(0.,0.,0.)",),
    "artemis": ("--config.model.variant=artemis",),
    "text_only": ("--config.model.variant=text_only",),
    "image_only": ("--config.model.variant=image_only",),
}
PROTOCOLS = ("garments/test", "garments/all")


def table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table of recalls, one row for each method."""
    columns = [(p, r) for p in PROTOCOLS for r in training_runs.RECALLS]
    rows = [
        [name, *(cell for p in PROTOCOLS for cell in training_runs.recalls(turns, p))]
        for name, turns in results.items()
    ]
    oracles = next(iter(results.values()))[0]["facts"]["oracles"]
    for name in oracles[PROTOCOLS[0]]:
        cells = [f"{oracles[p][name][r]:.1f}" for p, r in columns]
        rows.append([f"({name.replace('_', ' ')})", *cells])
    return harness.table(["method", *(f"{p} {r}" for p, r in columns)], rows)


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
            workdir = arguments.runs / training_runs.folder_name(name, seed)
            flags = ("--config=configs/garments.py", f"--config.seed={seed}", *METHODS[name])
            results[name].append({**training_runs.run(workdir, flags), "seed": seed})
    print(table(results))
    harness.write(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
