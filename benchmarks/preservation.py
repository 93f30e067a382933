"""Does the preservation loss help, and do its variants? See docs/preservation_loss.md.

python benchmarks/preservation.py --prepare photographs --source=FOLDER --folder=runs/loss
python benchmarks/preservation.py --prepare garments --source=data/garments --folder=runs/loss
python benchmarks/preservation.py --folder=runs/loss --out=runs/loss/results.json --limit=500
python benchmarks/preservation.py --table runs/loss/results.json

The first two commands write the data of all runs (photographs in Fashion200k's layout, garments as
`configs/garments.py` renders them). The third trains with every setting, seed by seed, and writes
the results after each run; it needs neither TensorFlow nor CLU. A run that is in the file is not
repeated, and none starts after the limit. The fourth prints the results in Markdown.
"""

import argparse
import concurrent.futures
import math
import pathlib
import time

import jax
import preservation_data
import preservation_table
from preservation_training import Setting, Trainer

from cmap_jax.files import read_json, write_json

# In the order of importance; each is trained for a seed before the next seed.
SETTINGS = {
    "artemis": Setting("artemis"),
    "none": Setting(weight=0),
    "released": Setting(),
    "detached": Setting(moves_text=False),
    "maximum": Setting(reversal="maximum"),
    "clipped": Setting(reversal="clipped"),
    "late": Setting(start=0.5),
    "ramped": Setting(ramp=1),
    "floor": Setting(entropy_floor=0.9),
    "margin 1/4": Setting(margin=0.25),
    "weight 0.3": Setting(weight=0.3),
    "weight 0.1": Setting(weight=0.1),
    "weight 0.03": Setting(weight=0.03),
    "maximum, detached": Setting(reversal="maximum", moves_text=False),
    "maximum, detached, margin 1/4": Setting(reversal="maximum", moves_text=False, margin=0.25),
    "maximum, detached, late": Setting(reversal="maximum", moves_text=False, start=0.5),
    "maximum, detached, floor": Setting(reversal="maximum", moves_text=False, entropy_floor=0.9),
    "detached, floor": Setting(moves_text=False, entropy_floor=0.9),
    "floor alone": Setting(weight=0, entropy_floor=0.9),
    "late, weight 0.1": Setting(start=0.5, weight=0.1),
    "published weight": Setting(weight=50),  # the small configs have a fiftieth
    "artemis x3": Setting("artemis", length=3),
    "none x3": Setting(weight=0, length=3),
    "released x3": Setting(length=3),
}


def train(arguments: argparse.Namespace) -> None:
    """Train with all settings that were asked for, and write the results after each run."""
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(arguments.folder.resolve() / "cache"))
    started = time.monotonic()
    runs = read_json(arguments.out)["runs"] if arguments.out.exists() else []
    done = {(run["data"], run["setting"], run["seed"], run["steps"]) for run in runs}
    wanted = [
        (name, title, seed)
        for seed in arguments.seeds
        for name in arguments.data
        for title in arguments.settings
        if SETTINGS[title].length <= preservation_data.SETS[name].longest
    ]
    data = {name: preservation_data.load(name, arguments.folder) for name in arguments.data}

    def length(name: str, title: str) -> int:
        epochs = data[name].config.train.epochs * SETTINGS[title].length
        return arguments.steps or epochs * data[name].steps_per_epoch

    wanted = [run for run in wanted if (*run, length(*run[:2])) not in done]
    keys = dict.fromkeys((name, SETTINGS[title].variant) for name, title, _ in wanted)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # compilation takes the longest
        trainers = {k: pool.submit(_trainer, data[k[0]], *k, arguments.steps) for k in keys}
        for name, title, seed in wanted:
            if time.monotonic() - started > arguments.limit:
                print(f"the limit of {arguments.limit:.0f} s is reached", flush=True)
                break
            trainer = trainers[name, SETTINGS[title].variant].result()
            result = trainer.run(SETTINGS[title], seed, length(name, title))
            runs.append({"data": name, "setting": title, "seed": seed, **result})
            device = jax.devices()[0].device_kind
            write_json(arguments.out, {"device": device, "jax": jax.__version__, "runs": runs})
            print(_summary(runs[-1], time.monotonic() - started), flush=True)


def _trainer(data: preservation_data.Data, name: str, variant: str, steps: int | None) -> Trainer:
    """Return a trainer whose programs are compiled."""
    longest = preservation_data.SETS[name].longest * data.config.train.epochs
    trainer = Trainer(
        data,
        variant,
        longest=longest * data.steps_per_epoch,
        chunk=_chunk(steps or data.steps_per_epoch),
    )
    seconds = trainer.compile()
    print(f"{name}, {variant}: compiled in {seconds:.0f} s", flush=True)
    return trainer


def _chunk(steps: int, most: int = 60) -> int:
    """Return the largest divisor of an epoch's steps that is not above ``most``."""
    return max(n for n in range(1, most + 1) if steps % n == 0)


def _summary(run: dict, elapsed: float) -> str:
    recalls = next(iter(run["recalls"].values()))
    numbers = " / ".join(f"{recalls[f'R@{k}']:.1f}" for k in (1, 10, 50))
    return (
        f"{elapsed:6.1f} s  {run['data']}, {run['setting']}, seed {run['seed']}: {numbers}  "
        f"({run['steps']} steps, {run['training_seconds']} + "
        f"{run['seconds'] - run['training_seconds']:.1f} s)"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", choices=preservation_data.SETS, help="write a data set's file")
    parser.add_argument("--source", help="with --prepare: the data set's folder")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/loss"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/loss/results.json"))
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds after which no run starts"
    )
    parser.add_argument(
        "--data", nargs="+", choices=preservation_data.SETS, default=list(preservation_data.SETS)
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run, to try the script")
    parser.add_argument("--table", type=pathlib.Path, help="results to print")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.table:
        print(preservation_table.tables(read_json(arguments.table)["runs"]))
    elif arguments.prepare:
        preservation_data.prepare(
            arguments.prepare, arguments.source, arguments.folder, len(arguments.seeds)
        )
    else:
        train(arguments)


if __name__ == "__main__":
    main()
