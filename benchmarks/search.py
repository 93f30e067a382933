"""Exact search in a million images from a memory-mapped file: speed and peak memory.

python benchmarks/search.py --turns=1 --out=benchmarks/results/search.json

The gallery is streamed in blocks, since it is larger than the memory that `DEVICE_GB` allows. Speed
is given as a fraction of XLA's best matrix product (as in `ranking.py`) and of the bandwidth of one
pass over a large array. Both are measured just before and just after a search, which takes up to a
minute, because other work on the machine comes and goes. The file is read from the system's cache,
if there is room.
"""

import json
import pathlib
import tempfile
import threading
from typing import Any

import harness
import ml_dtypes
import numpy as np
from ranking import LEVELS, WIDTH, gemm_peak, l2, random_query

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
BATCHES = {1: 5, 64: 5, 1024: 2}  # queries at once, and the number of searches
K = 50
DEVICE_GB = 1.0
_PIECE = 2**14  # images written at once
_STATUS = pathlib.Path("/proc/self/status")


def write_gallery(folder: pathlib.Path, images: int) -> None:
    """Write a gallery of random unit vectors in each dtype."""
    rng = np.random.default_rng(0)
    files = [open_gallery(folder, name, images, "w+") for name in DTYPES]
    for level in range(LEVELS):
        for start in range(0, images, _PIECE):
            rows = slice(start, min(start + _PIECE, images))
            piece = l2(rng.standard_normal((rows.stop - start, WIDTH), np.float32))
            for file in files:
                file[level, rows] = piece.astype(file.dtype)


def open_gallery(folder: pathlib.Path, name: str, images: int, mode: str) -> np.memmap:
    return np.memmap(folder / name, DTYPES[name], mode, shape=(LEVELS, images, WIDTH))


def bandwidth() -> float:
    """Return the best rate of reading an array of 1 GB, in GB/s."""
    import jax
    import jax.numpy as jnp

    values = jnp.zeros((2**28,), jnp.float32)
    largest = jax.jit(jnp.max)
    taken = harness.seconds(lambda: largest(values).block_until_ready(), 10)
    return values.nbytes / min(taken) / 1e9


def machine_limits() -> dict[str, float]:
    """Return XLA's present GFLOP/s of matrix products and GB/s of reading."""
    return {"gemm_peak": gemm_peak("jax"), "bandwidth": bandwidth()}


def _memory(field: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


class MemoryPeak:
    """The peak of resident memory within a `with` block (Linux), with and without mapped files."""

    def __enter__(self) -> "MemoryPeak":
        self.before, self.anonymous = _memory("VmRSS"), 0
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.anonymous = max(self.anonymous, _memory("RssAnon"))

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        self.peak = _memory("VmHWM")


def search(folder: pathlib.Path, name: str, images: int) -> dict:
    """Return memory, seconds and the machine's limits for each number of queries."""
    from cmap_jax import sharding
    from cmap_jax.retrieval.exact import ExactIndex

    gallery = open_gallery(folder, name, images, "r")
    index = ExactIndex(gallery, sharding.make_mesh(), device_gb=DEVICE_GB)
    rng = np.random.default_rng(1)
    results: dict[str, Any] = {"gallery_bytes": gallery.nbytes}
    queries = {batch: random_query(rng, batch) for batch in BATCHES}
    for batch, query in queries.items():  # before `machine_limits` makes large arrays
        with MemoryPeak() as memory:
            index.search(query, K)
        results[str(batch)] = {
            "before_bytes": memory.before,
            "peak_bytes": memory.peak,
            "anonymous_bytes": memory.anonymous,
        }
    for batch, repeats in BATCHES.items():
        limits = [machine_limits()]
        taken = harness.seconds(lambda q=queries[batch]: index.search(q, K), repeats, warm_up=0)
        limits.append(machine_limits())
        best = {key: max(limit[key] for limit in limits) for key in limits[0]}
        results[str(batch)] |= {"seconds": taken, **best}
    return results


def report(results: dict[str, list[dict]], images: int) -> None:
    """Print a table of the results, a row for each dtype and number of queries."""
    rows = []
    for name in DTYPES:
        size = results[name][0]["gallery_bytes"]
        for batch in BATCHES:
            parts = [f[str(batch)] for f in results[name]]
            taken = [t for part in parts for t in part["seconds"]]
            middle = float(np.median(taken))
            # Three levels, two branches, numerator and norm: twelve dot products for each pair.
            speed = 12 * 2 * batch * images * WIDTH / middle / 1e9
            gb = size / middle / 1e9
            peak, reads = (
                float(np.median([part[key] for part in parts]))
                for key in ("gemm_peak", "bandwidth")
            )
            cells = [name, f"{batch:,}", harness.spread(taken), f"{batch / middle:.1f}"]
            cells += [f"{speed:.0f} of {peak:.0f} ({100 * speed / peak:.0f}%)"]
            cells += [f"{gb:.1f} of {reads:.0f} ({100 * gb / reads:.0f}%)"]
            cells += [
                f"{max(p[key] for p in parts) / 2**20:,.0f}"
                for key in ("peak_bytes", "anonymous_bytes", "before_bytes")
            ]
            rows.append(cells)
    head = ["gallery", "queries at once", "seconds", "queries/s", "GFLOP/s of the peak"]
    head += ["GB/s of the memory's", "peak MiB", "anonymous", "before"]
    print(harness.table(head, rows))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="folder for the files, 9 GB; default: a temporary one"
    )
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(search(arguments.folder, arguments.side, arguments.images)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = pathlib.Path(scratch)
        write_gallery(folder, arguments.images)
        results = harness.take_turns(
            tuple(DTYPES),
            arguments.turns,
            f"--folder={folder}",
            f"--images={arguments.images}",
        )
    report(results, arguments.images)
    harness.write(arguments.out, {"images": arguments.images, **results})


if __name__ == "__main__":
    main()
