"""The embedding of a catalogue by `cmap index`, as a share of the speed of the encoder alone.

python benchmarks/index.py --images=photographs --out=benchmarks/results/index.json

The model is CMAP with a ResNet-50 of random weights, at 224 pixels. One side encodes pixels that
are in memory; the other makes an index of the same pictures: it reads, hashes, decodes, encodes
and writes. Both have compiled their program before. On CPUs the threads that decode take their time
from the encoder; `decode` is what they take, measured alone, and the best ratio that is then
possible is printed beside the ratio. With less than 95% of the encoder's speed by the clock, in the
median of the turns, the exit status is 1: run it on a machine with nothing else to do. The seconds
of the CPUs are given for an explanation; other processes do not change them.
"""

import argparse
import collections
import itertools
import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import harness
import numpy as np
from PIL import Image

SIDES = ("encoder", "index", "decode")
TARGET = 0.95


def write_pictures(folder: pathlib.Path, count: int) -> None:
    """Write random photographs of 384x512 pixels, about 35 kB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (32, 24, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((384, 512), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05}.jpg", quality=85)


def make_trained(depth: int) -> Any:
    """Return CMAP with a ResNet of random weights, in memory."""
    import jax

    from cmap_jax.models.cmap import CMAP
    from cmap_jax.processing.images import ImagePreprocessing
    from cmap_jax.processing.tokenizer import Vocabulary
    from cmap_jax.trained import Trained
    from cmap_jax.workdir.description import Description
    from configs import default

    config = default.get_config()
    config.model.image.resnet.depth = depth
    vocabulary = Vocabulary.build(["is red"])
    config.model.text.vocabulary_size = len(vocabulary)
    model = CMAP.from_config(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if leaf.ndim > 1:  # an average of the inputs, so that depth changes no magnitude
            fan_in = leaf.size / leaf.shape[-1]
            return (rng.uniform(0.5, 1.5, leaf.shape) / fan_in).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return Trained(
        Description(config, vocabulary, ImagePreprocessing(), (), {}), model, variables, 0
    )


def measure(side: str, images: pathlib.Path, count: int, depth: int) -> dict[str, float]:
    """Return the seconds that a side takes for all pictures: of the clock and of the CPUs."""
    from cmap_jax.processing.images import ImagePreprocessing, preprocess_image
    from cmap_jax.retrieval.catalogue import items_of_folder
    from cmap_jax.retrieval.embedding import write_shards
    from cmap_jax.retrieval.indexing import build_index
    from cmap_jax.retrieval.pictures import Entry, PictureEncoder, read_ahead

    items = items_of_folder(images)[:count]
    if side == "decode":
        entries = [Entry(item) for item in items]
        pictures = read_ahead(entries, ImagePreprocessing(), remote=False)
        return timed(lambda: collections.deque(pictures, maxlen=0))
    trained = make_trained(depth)
    encoder = PictureEncoder(trained)
    pixels = [preprocess_image(item.image, trained.preprocessing) for item in items]
    encoder(pixels[:1]).block_until_ready()
    if side == "encoder":

        def run() -> None:
            batches = iter(pixels)
            while batch := list(itertools.islice(batches, encoder.batch)):
                last = encoder(batch)
            last.block_until_ready()

        return timed(run)
    del pixels
    trained.fingerprint  # noqa: B018 - it is computed once a model, whatever the catalogue's size

    def write(folder: str, writer: Any, tasks: Any) -> None:
        write_shards(folder, writer, tasks, encoder)

    with tempfile.TemporaryDirectory() as scratch:
        return timed(lambda: build_index(trained, items, f"{scratch}/index", write=write))


def timed(run: Any) -> dict[str, float]:
    """Return the seconds of a run, of the clock and of the process's CPUs."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    started, before = time.perf_counter(), used()
    run()
    return {"seconds": time.perf_counter() - started, "cpu": used() - before}


def report(results: dict[str, list[dict[str, float]]], count: int) -> dict[str, float]:
    """Print the table; return the ratio by each measure."""
    ratios, rows = {}, []
    for measure_ in ("seconds", "cpu"):
        times = {side: [turn[measure_] for turn in results[side]] for side in SIDES}
        middle = {side: float(np.median(values)) for side, values in times.items()}
        ratios[measure_] = middle["encoder"] / middle["index"]
        best = middle["encoder"] / (middle["encoder"] + middle["decode"])
        spreads = [harness.spread(times[side], 1000 / count) for side in SIDES]
        rows.append([measure_, *spreads, f"{best:.1%}", f"{ratios[measure_]:.1%}"])
    head = ["ms a picture", *SIDES, "best if they share cores", "encoder / index"]
    print(harness.table(head, rows))
    return ratios


def main() -> None:
    parser: argparse.ArgumentParser = harness.parser(__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="a folder of pictures; default: random")
    parser.add_argument("--count", type=int, default=512, help="pictures of it")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    arguments = parser.parse_args()
    if arguments.side:
        sizes = (arguments.count, arguments.depth)
        print(json.dumps(measure(arguments.side, arguments.images, *sizes)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        images = arguments.images or pathlib.Path(scratch)
        if arguments.images is None:
            write_pictures(images, arguments.count)
        options = {"--images": images, "--count": arguments.count, "--depth": arguments.depth}
        flags = [str(word) for option in options.items() for word in option]
        results = harness.take_turns(SIDES, arguments.turns, *flags)
    ratios = report(results, arguments.count)
    harness.write(arguments.out, {"ratios": ratios, "sides": results})
    if ratios["seconds"] < TARGET:
        sys.exit(f"an index is made at {ratios['seconds']:.1%} of the encoder's speed")


if __name__ == "__main__":
    main()
