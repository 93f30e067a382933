"""Images a second from photographs, prepared records and memory, beside a PyTorch DataLoader.

python benchmarks/input_pipeline.py --photos=DIR --out=benchmarks/results/input_pipeline.json

The photographs in a folder are enlarged (by default twice) and saved as JPEG; random triplets refer
to them. All sides do the same work for each: read, decode, pad, resize to 256 pixels, flip, crop to
224, collect uint8 batches of 128 references and 128 targets, encode the texts.

- "pytorch raw": a Dataset that uses PIL behind a DataLoader, with the best number of workers.
- "raw": this library's reading of the photographs, in training.
- "raw tensorflow": the same with TensorFlow's operations in place of PIL's.
- "pytorch 256": PyTorch's side on JPEG files of 256 pixels.
- "prepared jpeg", "prepared png": this library's prepared records of 256 pixels.
- "prepared jpeg pil": the same, decoded by PIL.
- "memory": decoded images that are kept in memory.

No model computes meanwhile, and files are in the system's cache. The processor time for an image
(including PyTorch's workers) hardly depends on other work on the machine; the rates do.
"""

import csv
import json
import os
import pathlib
import random
import sys
import tempfile
import time

# As main.py sets it: before TensorFlow loads.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import harness
import numpy as np
from PIL import Image

RESIZE, CROP, BATCH = 256, 224, 128
SIDES = (
    "pytorch raw",
    "raw",
    "raw tensorflow",
    "pytorch 256",
    "prepared jpeg",
    "prepared jpeg pil",
    "prepared png",
    "memory",
)
COMPARED = ("pytorch raw", "raw tensorflow", "pytorch 256", "prepared jpeg")
SECONDS = 8.0  # duration of a measurement, after the warm-up
PROBED = 3.0  # duration for each number of workers, in seconds
WARM_UP = 4  # batches
CORES = len(os.sched_getaffinity(0))


def make(photos: pathlib.Path, root: pathlib.Path, enlarge: float, limit: int) -> None:
    """Write the enlarged photographs, tables of triplets, and the files of 256 pixels."""
    from cmap_jax.processing.image_files import open_as
    from cmap_jax.processing.padded_resize import pad_to_square, resize_square

    files = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = random.Random(0).sample(files, min(limit, len(files)))
    for folder in ("raw", "small"):
        (root / folder).mkdir(parents=True)
    for number, file in enumerate(files):
        with open(file, "rb") as stream, open_as(stream) as opened:
            image = opened.convert("RGB")
        size = (round(image.width * enlarge), round(image.height * enlarge))
        image = image.resize(size, Image.Resampling.LANCZOS)
        image.save(root / "raw" / f"{number}.jpg", quality=90)
        small = resize_square(pad_to_square(image), RESIZE)
        small.save(root / "small" / f"{number}.jpg", quality=95)
    rng = np.random.default_rng(0)
    for split, count in (("train", 40 * BATCH), ("val", 8)):
        with (root / "raw" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("reference", "text", "target"))
            for reference, target in rng.integers(0, len(files), (count, 2)):
                writer.writerow((f"{reference}.jpg", "is red and longer", f"{target}.jpg"))


def prepare(root: pathlib.Path) -> None:
    """Write prepared records of the photographs."""
    import tensorflow_datasets as tfds

    from input_pipeline.builders import BUILDERS

    for encoding in ("jpeg", "png"):
        builder = BUILDERS["folder"](data_dir=root / "prepared", config=encoding)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=root / "raw")
        )


def measure(side: str, root: pathlib.Path) -> dict:
    """Return the rate and the costs of one side, as `_rate` does."""
    if side.startswith("pytorch"):
        return _measure_pytorch(root, "raw" if side.endswith("raw") else "small")
    from configs import folder
    from input_pipeline import create_datasets

    _replace_decoding(side)
    config = folder.get_config()
    config.data.directory = str(root / "raw")
    if side.startswith("prepared"):
        from input_pipeline.prepared import VERSION

        config.data.directory = str(root / "prepared" / "folder" / side.split()[1] / VERSION)
    config.data.cache_gb = 64.0 if side == "memory" else 0.0
    config.train.batch_size = BATCH
    train = create_datasets(config).train
    return _rate(train.batches(0, 1_000_000))


def _replace_decoding(side: str) -> None:
    """Replace the library's decoding of images, for the sides that measure another one."""
    import tensorflow as tf

    from cmap_jax.processing.images import load_square
    from input_pipeline import datasets
    from input_pipeline.images import decoding, preprocess
    from input_pipeline.images.sources import FolderImages

    if side == "raw tensorflow":
        import tensorflow_images

        class TensorFlowLoader(decoding.RecordLoader):
            def __init__(self, records, preprocessing, failed):
                self.source = FolderImages(records.images)
                self.preprocessing, self.failed = preprocessing, failed
                decoding.keep_freed_memory()

            def keys(self, images):
                return [self.source.where(i) for i in images]

            def _square(self, record):
                return tensorflow_images.load_square(tf.io.read_file(record), self.preprocessing)

        datasets.open_loader = TensorFlowLoader
    if side == "prepared jpeg pil":

        def decode(encoded, preprocessing):
            def load(data):
                return np.asarray(load_square(data, preprocessing))

            square = tf.numpy_function(load, [encoded], tf.uint8, stateful=False)
            return tf.ensure_shape(square, [RESIZE, RESIZE, 3])

        preprocess.decode_square = decode


def _rate(batches, seconds: float = SECONDS) -> dict:
    """Return images a second, processor time for an image, and bytes of a batch of images."""
    for _ in range(WARM_UP):
        batch = next(batches)
    images = [value for key, value in batch.items() if key.endswith("image")]
    count, started, worked = 0, time.perf_counter(), _processor_seconds()
    while (taken := time.perf_counter() - started) < seconds:
        next(batches)
        count += sum(len(image) for image in images)
    return {
        "images_per_second": count / taken,
        "processor_us": (_processor_seconds() - worked) / count * 1e6,
        "bytes_per_batch": sum(int(np.prod(image.shape)) for image in images),
    }


def _processor_seconds() -> float:
    """Return the processor time of this process and its living children so far (Linux)."""
    own = pathlib.Path("/proc/self")
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ticks = 0
    for process in (own, *(pathlib.Path("/proc") / child for child in children)):
        # After the name, which may contain blanks, fields 12 and 13 are user and system time.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _measure_pytorch(root: pathlib.Path, folder: str) -> dict:
    import torch

    from cmap_jax.processing.image_files import open_as

    torch.set_num_threads(1)
    with (root / "raw" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = {word: number for number, word in enumerate(["is", "red", "and", "longer"], 5)}

    def load(name: str) -> torch.Tensor:
        with open(root / folder / name, "rb") as stream, open_as(stream) as opened:
            image = opened.convert("RGB")
        if image.size != (RESIZE, RESIZE):
            side = max(image.size)
            square = Image.new("RGB", (side, side), (255, 255, 255))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square.resize((RESIZE, RESIZE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        top, left = (random.randint(0, RESIZE - CROP) for _ in range(2))
        return torch.from_numpy(np.array(image.crop((left, top, left + CROP, top + CROP))))

    class Triplets(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, item: int) -> dict:
            row = rows[item]
            return {
                "reference_image": load(row["reference"]),
                "target_image": load(row["target"]),
                "text_tokens": torch.tensor([words[w] for w in row["text"].split()]),
            }

    def batches(workers: int):
        loader = torch.utils.data.DataLoader(
            Triplets(),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        while True:
            yield from loader

    numbers = (0, *range(max(1, CORES // 2), CORES + 3))
    # The best number of workers is measured anew: the best of several rates is too high by chance.
    best = max(numbers, key=lambda w: _rate(batches(w), PROBED)["images_per_second"])
    return {**_rate(batches(best)), "workers": best}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--photos", type=pathlib.Path, help="folder of the photographs")
    parser.add_argument(
        "--enlarge", type=float, default=2.0, help="factor by which their sides are enlarged"
    )
    parser.add_argument("--limit", type=int, default=3_000, help="greatest number of photographs")
    parser.add_argument("--folder", type=pathlib.Path, help="folder of the files, for --side")
    parser.add_argument(
        "--accelerator",
        type=float,
        default=6_000.0,
        help="images a second that an accelerator trains on; default: an estimate for one H200, "
        "a ResNet-50 in bfloat16, forward and backward",
    )
    parser.add_argument(
        "--sides", default=",".join(SIDES), help="sides to measure, separated by commas"
    )
    arguments = parser.parse_args()
    sides = arguments.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"--sides: {', '.join(sorted(unknown))}: none of {', '.join(SIDES)}")
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(arguments.photos, pathlib.Path(folder), arguments.enlarge, arguments.limit)
        if any(side.startswith("prepared") for side in sides):
            prepare(pathlib.Path(folder))
        raw = list((pathlib.Path(folder) / "raw").glob("*.jpg"))
        mean = np.mean([file.stat().st_size for file in raw])
        sys.stderr.write(f"{len(raw)} photographs of {mean / 1024:.0f} KB on average\n")
        results = harness.take_turns(sides, arguments.turns, f"--folder={folder}")
    assert len({turn["bytes_per_batch"] for turns in results.values() for turn in turns}) == 1
    rates = {side: [t["images_per_second"] for t in turns] for side, turns in results.items()}
    costs = {side: [t["processor_us"] for t in turns] for side, turns in results.items()}
    middle = {side: float(np.median(values)) for side, values in rates.items()}
    rows = []
    for side in sides:
        workers = {turn.get("workers") for turn in results[side]} - {None}
        rows.append(
            [
                side + (f", {'/'.join(map(str, sorted(workers)))} workers" if workers else ""),
                harness.spread(rates[side], digits=0),
                harness.spread(costs[side], digits=0),
                *(_ratio(middle, side, other) for other in COMPARED),
                f"{arguments.accelerator * CORES / middle[side]:.1f}",
            ]
        )
    head = [
        "side",
        "images/s",
        "processor us an image",
        *(f"/ {other}" for other in COMPARED),
        f"cores for {arguments.accelerator:,.0f} images/s",
    ]
    print(harness.table(head, rows))
    harness.write(
        arguments.out,
        {
            "photographs": len(raw),
            "mean_bytes": mean,
            "images_per_second": rates,
            "processor_us_an_image": costs,
        },
    )


def _ratio(rates: dict[str, float], side: str, other: str) -> str:
    return f"{rates[side] / rates[other]:.2f}" if other in rates else "-"


if __name__ == "__main__":
    main()
