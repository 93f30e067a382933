r"""Write a frozen image encoder's features of a data set, to train and evaluate without pixels.

cmap extract --config=configs/fashioniq.py --config.data.directory=fashion-iq \
    --config.model.image.init_from=resnet50.pth \
    --config.model.image.resnet.frozen_batch_norm=running --out features
cmap extract --model runs/fashioniq --out features --dtype float32

A command that was stopped goes on where it stopped.
"""

import argparse
import itertools
import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.cli import flags
from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.config_files import from_workdir
from cmap_jax.cli.devices import check_devices
from cmap_jax.progress import LiveLine, format_seconds
from input_pipeline.features.description import DTYPES, Description
from input_pipeline.features.writing import FeatureWriter, check_destination


class _Row(NamedTuple):
    """The features of an image; ``position`` is that among all images of the folder."""

    position: int
    features: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config",
        metavar="FILE",
        type=path,
        help="the config of a run to come, with its overrides --config.any.field=value; its data "
        "are read and its image encoder runs",
    )
    source.add_argument(
        "--model", metavar="WORKDIR", type=path, help="a trained model, whose image encoder runs"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path,
        required=True,
        help="a new folder for the features, or one in which this command was stopped",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float16", help="of the stored numbers"
    )


def run(arguments: argparse.Namespace) -> int:
    """Extract what is still missing, and say how to train on it."""
    check_destination(arguments.out)
    config = _read_config(arguments)
    check_devices()
    use_compilation_cache(None)
    # TensorFlow takes seconds to load, hence the imports in here.
    import tensorflow as tf

    from input_pipeline.datasets import open_images_once

    tf.config.set_visible_devices([], "GPU")  # JAX alone uses accelerators
    config, encoder = _open_encoder(config, arguments.model)
    loader, records = open_images_once(config)
    description = Description(
        encoder=encoder.about,
        preprocessing=loader.preprocessing,
        levels=encoder.levels,
        dtype=arguments.dtype,
        data_set=records.name,
        prepared=records.facts.get("prepared"),
        images=tuple(records.images),
    )
    writer = FeatureWriter(arguments.out, description)
    print(_summary(config, encoder, description, arguments.out), flush=True)
    _check_room(description, writer, arguments.out)
    writer.begin()
    _extract(config, encoder, description, writer, loader)
    print(
        f"{arguments.out} holds the features of {len(description.images) - len(loader.failed):,} "
        f"images. Next: {_next_step(arguments)}"
    )
    return 0


def _next_step(arguments: argparse.Namespace) -> str:
    """Return what the features are for: a run to come, or evaluations of the model."""
    out = shlex.quote(arguments.out)
    if arguments.model is not None:
        return f"cmap evaluate {shlex.quote(arguments.model)} --features {out}"
    return (
        f"train with --config.data.features={out} --config.data.augment=false beside the "
        "flags given here"
    )


def _read_config(arguments: argparse.Namespace) -> ConfigDict:
    """Return the config of the run to come, or of the model."""
    if arguments.config is not None:
        return flags.read_config(arguments.config, arguments.overrides)
    from cmap_jax.workdir.description import read_description

    read_description(arguments.model)  # refuses a folder that is none
    return flags.read_config(from_workdir(arguments.model), arguments.overrides)


def _open_encoder(config: ConfigDict, workdir: str | None) -> tuple[ConfigDict, Any]:
    """Return the config to read the images with, and a `FrozenEncoder`.

    Raises:
        FileNotFoundError: no weights.
        ValueError: an impossible config, weights that do not fit it, or an encoder whose features
            change during training.
    """
    from cmap_jax.cli.run import as_trained
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.training.check import check_config
    from cmap_jax.training.frozen_encoder import FrozenEncoder, check_cacheable
    from cmap_jax.training.initial_weights import read_initial_weights
    from cmap_jax.workdir.weights import read_variables
    from input_pipeline import check_fields

    # This machine may have other devices than the run. Neither field changes a feature.
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.eval.batch_size = _round_up_to_devices(config.eval.batch_size)
    check_fields(config, training=False)
    if workdir is None:
        check_config(config, training=False)
        check_cacheable(config)
        initial = read_initial_weights(config, for_texts=False)
        return config, FrozenEncoder.from_initial(config, initial)
    config, _ = as_trained(config, workdir)
    _, variables = read_variables(workdir, CMAP.from_config(config), config.data.crop)
    return config, FrozenEncoder.from_variables(config, variables)


def _round_up_to_devices(size: int) -> int:
    from cmap_jax import sharding
    from cmap_jax.numerics import round_up

    return round_up(size, sharding.make_mesh().size)


def _summary(config: ConfigDict, encoder: Any, description: Description, out: str) -> str:
    """Return the lines on size and speed that come before the work."""
    import jax

    from cmap_jax.cli.describe import step_flop_from_features
    from cmap_jax.cli.flop import count_flop

    count, dtype = len(description.images), description.dtype
    parts = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in description.levels.items())
    side = config.data.crop
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    encoding = count_flop(jax.jit(encoder.features).trace(encoder.weights, image))
    features = step_flop_from_features(config, encoder.levels)
    pixels = features + 2 * config.train.batch_size * encoding
    lines = {
        "features": f"{count:,} images of {description.data_set}: {parts}, as {dtype}",
        "size": f"{_size(description.image_bytes)} an image, "
        f"{_size(count * description.image_bytes)} in all; {_size(_free(out))} are free in {out}",
        "speed": f"a training step of {config.train.batch_size} triplets takes "
        f"{features / 1e9:,.1f} GFLOP from them and {pixels / 1e9:,.1f} from pixels: expect it to "
        f"be up to {pixels / features:,.0f} times as fast",
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def _check_room(description: Description, writer: FeatureWriter, out: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OSError: says how much is needed.
    """
    images = sum(len(description.rows(number)) for number in writer.unfinished())
    if (needed := images * description.image_bytes) > _free(out):
        raise OSError(
            f"{out}: {_size(needed)} are still to be written, and {_size(_free(out))} are free; "
            "name a folder on another disk with --out, or a smaller --dtype"
        )


def _free(folder: str) -> int:
    nearest = epath.Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return shutil.disk_usage(os.fspath(nearest)).free


def _size(count: float) -> str:
    """Return a number of bytes as text, such as "7.2 kB"."""
    power = min(int(math.log(max(count, 1), 1000)), 4)
    unit = ("bytes", "kB", "MB", "GB", "TB")[power]
    return f"{count / 1000**power:,.{1 if power else 0}f} {unit}"


def _extract(
    config: ConfigDict, encoder: Any, description: Description, writer: FeatureWriter, loader: Any
) -> None:
    """Write all unfinished files, with progress."""
    todo = [p for number in writer.unfinished() for p in description.rows(number)]
    batches = _encode(config, encoder, [description.images[p] for p in todo], loader)
    rows = (
        _Row(todo[position], {level: values[n] for level, values in features.items()})
        for positions, features in _with_progress(batches, len(todo))
        for n, position in enumerate(positions)
    )
    per_file = description.rows_per_file
    for number, group in itertools.groupby(rows, lambda row: row.position // per_file):
        _write(description, writer, number, list(group))
    for number in writer.unfinished():  # files without an image that can be decoded
        _write(description, writer, number, [])


def _write(description: Description, writer: FeatureWriter, number: int, rows: list[_Row]) -> None:
    """Write a file; images without a row could not be decoded."""
    positions = description.rows(number)
    arrays = {
        level: np.zeros((len(positions), *shape), np.float32)
        for level, shape in description.levels.items()
    }
    for row in rows:
        for level, values in row.features.items():
            arrays[level][row.position - positions.start] = values
    kept = {row.position for row in rows}
    writer.write(number, arrays, [description.images[p] for p in positions if p not in kept])


def _encode(
    config: ConfigDict, encoder: Any, images: list[str], loader: Any
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Return an iterator over batches of images, in order, without those that fail.

    The program is compiled at the call, so that it counts in no rate.

    Yields:
        The positions in ``images``, and the features by level.
    """
    import jax

    from cmap_jax import sharding
    from input_pipeline.batching import pad_batch
    from input_pipeline.images.loading import central_crops

    mesh, size, side = sharding.make_mesh(), config.eval.batch_size, config.data.crop
    weights = jax.device_put(encoder.weights, sharding.replicated(mesh))
    example = jax.ShapeDtypeStruct(
        (size, side, side, 3), np.uint8, sharding=sharding.split_over_devices(mesh)
    )
    program = jax.jit(encoder.features, out_shardings=sharding.replicated(mesh))
    compiled = program.lower(weights, example).compile()

    def encode(pixels: np.ndarray) -> dict[str, np.ndarray]:
        batch = pad_batch({"image": pixels, "mask": np.ones(len(pixels), bool)}, size)
        return jax.device_get(compiled(weights, sharding.place_batch(batch, mesh)["image"]))

    return ((kept, encode(pixels)) for kept, pixels in central_crops(images, size, loader))


def _with_progress(batches: Iterator[tuple[list[int], Any]], total: int) -> Iterator[Any]:
    """Yield batches; show how many images are done, their rate and the time left."""
    line, started, done = LiveLine(), time.monotonic(), 0
    for batch in batches:
        done = batch[0][-1] + 1 if batch[0] else done
        rate = max(done, 1) / max(time.monotonic() - started, 1e-9)
        line.update(
            f"extracting: {done:,} of {total:,} images, {rate:,.1f} a second, "
            f"{format_seconds((total - done) / rate)} left",
            done / total,
        )
        yield batch
    line.clear()
