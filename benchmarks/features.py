"""An epoch on precomputed features beside an epoch of a frozen ResNet-50 on pixels.

python benchmarks/features.py --out=benchmarks/results/features.json

The model is CMAP without cross-level interaction, whose image features are pooled vectors of three
levels (float16 on disk), with ResNet-50 at 224 pixels, frozen with its running statistics, and
frozen word embeddings; the data are random JPEG pictures. Both sides train with AdamW on the same
batches of 32 triplets, without augmentation, through the input pipeline and `DeviceFeed`. The
pixels are kept decoded in memory, which favours that side. The losses of the first steps must agree
to 1e-3, and an epoch on features must be at least 20 times as fast (exit status 1 otherwise).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import harness
import numpy as np
from PIL import Image

SIDES = ("pixels", "features")
IMAGES, BATCH, STEPS = 64, 32, 2  # an epoch: 64 triplets in 2 steps
EPOCHS = {"pixels": 1, "features": 50}  # epochs that are timed in one go, after one that is not
TARGET = 20  # epochs on features in the time of one on pixels
WORDS = [
    "is",
    "has",
    "a",
    "the",
    "more",
    "less",
    "red",
    "blue",
    "long",
    "short",
    "sleeves",
    "collar",
    "darker",
    "shiny",
    "plain",
    "dress",
]


def write_data(folder: pathlib.Path) -> None:
    """Write random pictures with triplets of training and validation."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = rng.integers(0, 256, (8, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((300, 400)).save(folder / f"{i}.jpg", quality=90)
    for split, count in (("train", IMAGES), ("val", 4)):
        rows = ["reference,text,target"]
        for i in range(count):
            text = " ".join(rng.choice(WORDS, rng.integers(4, 12)))
            rows.append(f"{i}.jpg,{text},{(i + 1) % IMAGES}.jpg")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")


def flags(folder: pathlib.Path) -> list[str]:
    """Return the overrides of configs/folder.py, for extraction and training alike."""
    return [
        f"--config.data.directory={folder}",
        "--config.data.augment=false",
        "--config.model.image.cross_level=none",
        "--config.model.image.resnet.frozen_batch_norm=running",
        f"--config.train.batch_size={BATCH}",
        "--config.eval.batch_size=32",
    ]


def extract(folder: pathlib.Path, out: pathlib.Path) -> float:
    """Extract the features with the command; return its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "cmap_jax.cli.command", "extract"]
    arguments = ["--config=configs/folder.py", *flags(folder), f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, *arguments], check=True, cwd=harness.ROOT, env=environment)
    return time.perf_counter() - started


def measure(side: str, folder: pathlib.Path, features: pathlib.Path) -> dict:
    """Return the seconds of an epoch on one side, and the first losses."""
    import jax

    import input_pipeline
    from cmap_jax import sharding
    from cmap_jax.cli.flags import read_config
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.training.feed import DeviceFeed
    from cmap_jax.training.optimizer import make_optimizer, make_schedule
    from cmap_jax.training.train_state import create_train_state
    from cmap_jax.training.train_step import make_train_step

    os.chdir(harness.ROOT)
    config = read_config("configs/folder.py", flags(folder))
    config.data.features = str(features) if side == "features" else None
    datasets = input_pipeline.create_datasets(config)
    config.model.text.vocabulary_size = len(datasets.tokenizer)
    model, mesh = CMAP.from_config(config), sharding.make_mesh(jax.devices()[:1])
    schedule = make_schedule(config, STEPS)
    tx = make_optimizer(config, schedule)
    step = jax.jit(make_train_step(model, tx, schedule, config, mesh), donate_argnums=0)
    quick = {"xla_backend_optimization_level": 0}
    state = jax.jit(
        lambda: create_train_state(model, tx, config.seed, config.data.crop),
        compiler_options=quick,
    )()
    losses, epochs = [], EPOCHS[side]
    with DeviceFeed(datasets.train.batches(0, (1 + epochs) * STEPS), mesh) as feed:
        for number, batch in enumerate(feed):
            if number == STEPS:
                started = time.perf_counter()
            state, metrics = step(state, batch)
            if number < STEPS:
                losses.append(float(metrics["loss/total"]))
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - started) / epochs
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="the pictures, for --side")
    parser.add_argument("--features", type=pathlib.Path, help="their features, for --side")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.data, arguments.features)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        data, features = pathlib.Path(scratch) / "data", pathlib.Path(scratch) / "features"
        data.mkdir()
        write_data(data)
        seconds = extract(data, features)
        options = ("--data", str(data), "--features", str(features))
        results = harness.take_turns(SIDES, arguments.turns, *options)
    losses = [turn["losses"] for turns in results.values() for turn in turns]
    np.testing.assert_allclose(losses, [losses[0]] * len(losses), rtol=1e-3)
    times = {side: [turn["seconds"] for turn in turns] for side, turns in results.items()}
    ratio = float(np.median(times["pixels"]) / np.median(times["features"]))
    head = [
        f"an epoch of {IMAGES} triplets",
        *(f"{side}, s" for side in SIDES),
        "pixels / features",
    ]
    row = ["CMAP, frozen ResNet-50", *(harness.spread(times[side]) for side in SIDES)]
    print(harness.table(head, [[*row, f"{ratio:.1f}"]]))
    print(f"Extraction of {IMAGES} images: {seconds:.0f} s, compilation included.")
    harness.write(arguments.out, {"ratio": ratio, "extraction": seconds, "sides": results})
    if ratio < TARGET:
        sys.exit(f"an epoch on features is {ratio:.1f} times as fast, not {TARGET}")


if __name__ == "__main__":
    main()
