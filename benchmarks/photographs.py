"""Recalls on photographs with a pretrained encoder: CMAP beside its rivals and the shortcuts.

python benchmarks/photographs.py --data=FOLDER --runs=runs/photographs \
    --out=benchmarks/results/photographs.json -- --config.data.resize=146 --config.data.crop=128

FOLDER is in Fashion200k's layout. Every run is `python main.py --config=...` with the overrides
after `--` and those of a method below. A complete run is not repeated and a stopped one continues,
so that the script can be stopped and started again. With `--finetune` a second stage follows each
run, and trains the encoder too. It prints a Markdown table of means over the seeds, ± half of the
range, with the minutes that a run takes.
"""

import argparse
import pathlib

import harness
import training_runs

METHODS = {
    "cmap": (),
    "cmap, no preservation loss": ("--config.loss.preservation_weights=(0.,0.,0.)",),
    "artemis": ("--config.model.variant=artemis",),
    "late_fusion": ("--config.model.variant=late_fusion",),
    "text_only": ("--config.model.variant=text_only",),
    "image_only": ("--config.model.variant=image_only",),
}
PROTOCOL = "fashion200k"
FINETUNED = ", fine-tuned"


def runs_of(arguments: argparse.Namespace, method: str, seed: int) -> list[dict]:
    """Return the results of a method's run, and of its second stage where one is asked for."""
    common = (
        *(f"--config.seed={seed}", f"--config.data.directory={arguments.data}"),
        *(*arguments.overrides, *METHODS[method]),
    )
    first = arguments.runs / training_runs.folder_name(method, seed)
    results = [training_runs.run(first, (f"--config={arguments.config}", *common))]
    if arguments.finetune:
        second = arguments.runs / training_runs.folder_name(method + FINETUNED, seed)
        config = f"--config={arguments.config},finetune"
        flags = (config, f"--config.init_from={first}", *common)
        results.append(training_runs.run(second, flags))
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of photographs")
    parser.add_argument("--config", default="configs/fashion200k.py:pretrained")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/photographs"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--finetune", action="store_true", help="a second stage after each run")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the figures to")
    parser.add_argument("overrides", nargs="*", help="after --, such as --config.train.epochs=8")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data: {arguments.data}: no such folder")
    arguments.data, arguments.runs = arguments.data.resolve(), arguments.runs.resolve()
    return arguments


def main() -> None:
    arguments = parse()
    results: dict[str, list[dict]] = {}
    for seed in range(arguments.seeds):  # seed by seed, so that an early table has every method
        for method in arguments.methods:
            for name, result in zip(
                (method, method + FINETUNED), runs_of(arguments, method, seed), strict=False
            ):
                results.setdefault(name, []).append({**result, "seed": seed})
        print(f"{seed + 1} of {arguments.seeds} seeds\n\n{table(results)}\n", flush=True)
    harness.write(arguments.out, {"results": results})


def table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table of recalls and times, a row for each method and stage."""
    rows = [
        [name, *training_runs.recalls(turns, PROTOCOL), training_runs.minutes(turns)]
        for name, turns in results.items()
    ]
    return harness.table(["method", *training_runs.RECALLS, "minutes"], rows)


if __name__ == "__main__":
    main()
