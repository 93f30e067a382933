"""`cmap doctor` on 75,000 small files, beside PIL opening them one after another in one thread.

python benchmarks/doctor.py --out=benchmarks/results/doctor.json

The files are JPEGs of 5 to 10 KB in FashionIQ's layout, no two alike. They were just written, and
the system's cache holds them, so that the disk plays no part. Baselines: `open_as` and `verify`
of each file, which reads headers, and `Image.load`, which decodes and so detects truncated files,
as the doctor does. Neither compares contents or reads annotations.
"""

import io
import json
import pathlib
import sys
import tempfile
import time

import harness
import numpy as np
from PIL import Image

SIDES = ("doctor", "verify", "load")
PICTURES = 200  # distinct pictures; files of one picture differ in a comment


def make(root: pathlib.Path, count: int) -> None:
    """Write the images, and annotations that refer to all of them."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        side = int(rng.integers(98, 138))
        coarse = rng.integers(0, 256, (side // 2, side // 2, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((side, side)).save(buffer, "JPEG", quality=75)
        pictures.append(buffer.getvalue())
    folder = root / "images"
    folder.mkdir()
    for i in range(count):
        picture = pictures[i % PICTURES]
        # After the start marker: a comment segment with its length.
        (folder / f"{i:06d}.jpg").write_bytes(picture[:2] + b"\xff\xfe\0\x0a%08d" % i + picture[2:])
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ark", "elt", "imp", "orn", "ush")]
    ids = [f"{i:06d}" for i in range(count)]
    at = count * 4 // 5 // 2 * 2
    for split, members in (("train", ids[:at]), ("val", ids[at:])):
        entries = [
            {
                "candidate": a,
                "target": b,
                "captions": [" ".join(rng.choice(words, 6)) for _ in range(2)],
            }
            for a, b in zip(members[::2], members[1::2], strict=False)
        ]
        for kind, name, content in (
            ("captions", "cap", entries),
            ("image_splits", "split", members),
        ):
            path = root / kind / f"{name}.dress.{split}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))


def measure(side: str, root: pathlib.Path) -> dict:
    """Return the seconds that one side takes, and the number of files it examined."""
    if side == "doctor":
        from input_pipeline.doctor import examine as doctor

        report = doctor.examine("fashion_iq", str(root))
        assert report.ready(), report.verdict()
        assert report.images.total == report.images.usable
        assert not any(f.kind == "duplicate" for f in report.findings)
        return {"seconds": report.seconds, "files": report.images.total}
    from cmap_jax.processing.image_files import open_as

    files = sorted((root / "images").iterdir())
    started = time.perf_counter()
    for file in files:
        with open(file, "rb") as stream, open_as(stream) as image:
            image.verify() if side == "verify" else image.load()
    return {"seconds": time.perf_counter() - started, "files": len(files)}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--files", type=int, default=75_000)
    parser.add_argument("--folder", type=pathlib.Path, help="folder of the files, for --side")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(pathlib.Path(folder), arguments.files)
        sizes = [f.stat().st_size for f in (pathlib.Path(folder) / "images").iterdir()]
        sys.stderr.write(f"{len(sizes)} files of {min(sizes)} to {max(sizes)} bytes\n")
        results = harness.take_turns(SIDES, arguments.turns, f"--folder={folder}")
    seconds = {side: [turn["seconds"] for turn in results[side]] for side in SIDES}
    ours = float(np.median(seconds["doctor"]))
    rows = [
        [
            side,
            harness.spread(taken, digits=1),
            f"{results[side][0]['files'] / np.median(taken):,.0f}",
            f"{np.median(taken) / ours:.2f}",
        ]
        for side, taken in seconds.items()
    ]
    head = ["side", f"seconds for {arguments.files:,} files", "files/s", "time / the doctor's"]
    print(harness.table(head, rows))
    harness.write(arguments.out, {"files": arguments.files, "seconds": seconds})


if __name__ == "__main__":
    main()
