"""Exact search in large galleries: speed beside the device's limits, and peak memory.

python benchmarks/search.py --out=benchmarks/results/search.json
python benchmarks/search.py --resident --images=1000000

The first form streams a memory-mapped file on CPU, in blocks of a twelfth of it, each dtype in its
own process. The second one, for any device, keeps a gallery that is generated there; it also checks
that a search in two passes gives the result of one in float32, and that images tie with their
copies, and ends with status 1 where that is not so. Speed is given as a share of the best float32
matrix product and of the bandwidth of one pass over a large array, both measured just before and
just after a search, because other work on the machine comes and goes.
"""

import json
import pathlib
import sys
import tempfile
import threading
import time
import types
from typing import Any

import harness
import ml_dtypes
import numpy as np
from ranking import LEVELS, WIDTH, gemm_peak, l2, random_query

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
BATCHES = {1: 20, 64: 5, 1024: 2}  # queries at once, and the number of searches
K = 50
IMAGES = 100_000  # a few minutes on two cores
_SHARE = 6  # a device may take one part of so many, in two blocks
_PIECE = 2**14  # images written at once
_TILE = 1024  # images that the products alone are timed with
_COPIES = 512  # images that stand in the resident gallery twice
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


def bandwidth(gigabytes: int = 1) -> float:
    """Return the best rate of reading an array, in GB/s."""
    import jax
    import jax.numpy as jnp

    values = jnp.zeros((gigabytes * 2**28,), jnp.float32)
    largest = jax.jit(jnp.max)
    taken = harness.seconds(lambda: largest(values).block_until_ready(), 10)
    return values.nbytes / min(taken) / 1e9


def machine_limits() -> dict[str, float]:
    """Return XLA's present GFLOP/s of matrix products and GB/s of reading."""
    import jax

    if jax.default_backend() == "cpu":
        return {"gemm_peak": gemm_peak("jax"), "bandwidth": bandwidth()}
    return {"gemm_peak": _device_peak("float32"), "bandwidth": bandwidth(4)}


def _device_peak(dtype: str, size: int = 8192) -> float:
    """Return an accelerator's GFLOP/s of a square product, accumulated in float32."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size), dtype)
    product = jax.jit(
        lambda x: jnp.matmul(x, x, precision="highest", preferred_element_type=jnp.float32)
    )
    taken = harness.seconds(lambda: product(x).block_until_ready(), 5)
    return 2 * size**3 / min(taken) / 1e9


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
    index = ExactIndex(gallery, sharding.make_mesh(), device_gb=gallery.nbytes / _SHARE / 1e9)
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
        results[str(batch)] |= _timed(lambda q=queries[batch]: index.search(q, K), repeats)
    return results


def _timed(run: Any, repeats: int, warm_up: int = 0) -> dict[str, Any]:
    """Return the seconds of each run, and the limits measured before and after."""
    limits = [machine_limits()]
    taken = harness.seconds(run, repeats, warm_up)
    limits.append(machine_limits())
    return {"seconds": taken, **{key: max(limit[key] for limit in limits) for key in limits[0]}}


def _shares(batch: int, images: int, size: int, timed: dict[str, Any]) -> list[str]:
    """Return a table's cells: seconds, queries a second, shares of the two limits."""
    middle = float(np.median(timed["seconds"]))
    # Three levels, two branches, numerator and norm: twelve dot products for each pair.
    speed = 12 * 2 * batch * images * WIDTH / middle / 1e9
    peak, reads, gb = timed["gemm_peak"], timed["bandwidth"], size / middle / 1e9
    return [
        harness.spread(timed["seconds"], 1e3, 2),
        f"{batch / middle:,.1f}",
        f"{speed:,.0f} of {peak:,.0f} ({100 * speed / peak:.0f}%)",
        f"{gb:,.1f} of {reads:,.0f} ({100 * gb / reads:.0f}%)",
    ]


_HEAD = ["gallery", "queries at once", "ms", "queries/s", "GFLOP/s of the float32 peak"]
_HEAD += ["GB/s of the memory's"]


def report(results: dict[str, list[dict]], images: int) -> None:
    """Print a table of the results, a row for each dtype and number of queries."""
    rows = []
    for name in DTYPES:
        size = results[name][0]["gallery_bytes"]
        for batch in BATCHES:
            parts = [f[str(batch)] for f in results[name]]
            timed = {"seconds": [t for part in parts for t in part["seconds"]]}
            for key in ("gemm_peak", "bandwidth"):
                timed[key] = float(np.median([part[key] for part in parts]))
            cells = [name, f"{batch:,}", *_shares(batch, images, size, timed)]
            cells += [
                f"{max(p[key] for p in parts) / 2**20:,.0f}"
                for key in ("peak_bytes", "anonymous_bytes", "before_bytes")
            ]
            rows.append(cells)
    print(harness.table([*_HEAD, "peak MiB", "anonymous", "before"], rows))


def make_gallery(images: int) -> Any:
    """Return a gallery [L, N, D] of random unit vectors on the device.

    The images at `copied` stand a second time right behind the middle of the gallery.
    """
    import jax
    import jax.numpy as jnp

    @jax.jit
    def level(key: jax.Array) -> jax.Array:
        rows = jax.random.normal(key, (images, WIDTH), jnp.float32)
        rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
        behind = images // 2 + jnp.arange(_COPIES)
        return rows.at[behind].set(rows[copied(images)])

    keys = jax.random.split(jax.random.key(0), LEVELS)
    return jnp.stack([level(key) for key in keys])


def _kept_as(name: str, gallery: Any) -> tuple[Any, int]:
    """Return a gallery in a dtype, and its bytes."""
    import jax.numpy as jnp

    if name != "int8":
        kept = gallery.astype(name)
        return kept, kept.nbytes
    scales = jnp.abs(gallery).max(axis=2) / 127
    codes = jnp.round(gallery / scales[:, :, None]).astype(jnp.int8)
    return types.SimpleNamespace(codes=codes, scales=scales), codes.nbytes + scales.nbytes


def copied(images: int) -> np.ndarray:
    """Return the positions of images that have a copy, all in the first half."""
    step = max(images // 2 // _COPIES, 1)
    return np.arange(_COPIES) * step % (images // 2)


class Resident:
    """Searches in a gallery that is generated on the device, printed one by one."""

    def __init__(self, images: int, limit: float):
        self.images, self._limit, self._started = images, limit, time.perf_counter()
        self.rows: list[list[str]] = []
        self.figures: dict[str, Any] = {}
        self.is_equal = True  # whether every comparison so far came out equal
        self._limits = machine_limits()

    def note(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._started:6.1f} s] {text}", flush=True)

    def has_time(self) -> bool:
        return time.perf_counter() - self._started < self._limit

    def measure(self, name: str, index: Any, size: int, batch: int) -> None:
        """Time searches for the best images, and print and keep the figures."""
        if not self.has_time():
            return self.note(f"{name}, {batch}: left out, no time")
        query = random_query(np.random.default_rng(1), batch)
        started = time.perf_counter()
        index.search(query, K)
        first = time.perf_counter() - started
        taken = harness.seconds(lambda: index.search(query, K), BATCHES[batch], 1)
        timed = {"seconds": taken, **self._limits}
        cells = [name, f"{batch:,}", *_shares(batch, self.images, size, timed)]
        self.rows.append(cells)
        self.figures[f"{name}, {batch}"] = timed
        return self.note(f"{' | '.join(cells)} (first: {first:.1f} s)")

    def products(self, gallery: Any, batch: int) -> None:
        """Time the products of a search alone, tile by tile, all of one tile in the caches."""
        import jax
        import jax.numpy as jnp

        if not self.has_time():
            return self.note("products alone: left out, no time")
        vectors = jnp.asarray(
            np.random.default_rng(1).normal(size=(LEVELS, 2, 2 * batch, WIDTH)), jnp.float32
        )

        @jax.jit
        def multiply(vectors: jax.Array, tile: jax.Array) -> list[jax.Array]:
            pairs = zip(vectors, tile, strict=True)
            return [jnp.dot(x, rows.T, precision="highest") for pair, rows in pairs for x in pair]

        tile = gallery[:, :_TILE]
        run = lambda: jax.block_until_ready(  # noqa: E731
            [multiply(vectors, tile) for _ in range(self.images // _TILE)][-1]
        )
        taken = harness.seconds(run, BATCHES[batch], 1)
        timed = {"seconds": taken, **self._limits}
        self.rows.append(["products alone", f"{batch:,}", *_shares(batch, self.images, 0, timed)])
        self.figures[f"products alone, {batch}"] = timed
        return self.note(" | ".join(self.rows[-1]))

    def compare(self, name: str, fast: Any, full: Any, batch: int) -> None:
        """Check that two indexes of one gallery give one result, and that copies tie."""
        if not self.has_time():
            return self.note("comparison left out, no time")
        query = random_query(np.random.default_rng(2), batch)
        originals = copied(self.images)
        targets = originals[np.arange(batch) % len(originals)]
        one, other = (x.search(query, K, targets=targets) for x in (fast, full))
        facts = {
            "positions": np.array_equal(one.positions, other.positions),
            "scores": np.array_equal(one.scores, other.scores),
            "ranks": np.array_equal(one.ranks, other.ranks),
            "copies tie": bool((other.placements.tied >= 1).all()),
            "copies tie, fast": bool((one.placements.tied >= 1).all()),
        }
        single = random_query(np.random.default_rng(3), 1)
        lists = fast.search(single, K)
        picked = fast.scores_at(single, lists.positions)
        facts["one query: a few images score as in the list"] = np.array_equal(picked, lists.scores)
        self.is_equal &= all(facts.values())
        differ = int((one.positions != other.positions).sum())
        self.figures.setdefault("equal", {})[name] = facts | {"positions that differ": differ}
        return self.note(f"{name}, fast and full at {batch}: {facts}, {differ} positions differ")


def resident(images: int, limit: float) -> tuple[dict[str, Any], bool]:
    """Measure searches in resident galleries of each dtype on the platform's devices.

    Returns:
        The figures, and whether all comparisons came out equal.
    """
    import jax

    from cmap_jax import sharding
    from cmap_jax.retrieval.exact import ExactIndex

    mesh = sharding.make_mesh()
    bench = Resident(images, limit)
    is_cpu = jax.default_backend() == "cpu"
    bench.note(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {bench._limits}")
    if not is_cpu:
        bench.note(f"bfloat16 products: {_device_peak('bfloat16'):,.0f} GFLOP/s")
    gallery = make_gallery(images)
    if is_cpu:
        bench.products(gallery, 64)
    for name in (*DTYPES, "int8"):
        kept, size = _kept_as(name, gallery)
        index = ExactIndex(kept, mesh, device_gb=1e3)
        bench.note(f"the {name} index is made")
        if not is_cpu and name != "int8":
            full = ExactIndex(kept, mesh, device_gb=1e3, fast=False)
            bench.compare(name, index, full, max(BATCHES))
            if name == "float32":
                bench.measure("float32, one pass", full, size, max(BATCHES))
        for batch in BATCHES:
            bench.measure(name, index, size, batch)
    print(harness.table(_HEAD, bench.rows))
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    return {**device, **bench.figures}, bench.is_equal


def main() -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument("--images", type=int, default=IMAGES, help="default: %(default)s")
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="folder for the files, 9 KB an image; default: a temporary one",
    )
    parser.add_argument(
        "--resident", action="store_true", help="keep a generated gallery on the device"
    )
    parser.add_argument(
        "--limit", type=float, default=1e9, help="seconds after which no measurement starts"
    )
    arguments = parser.parse_args()
    if arguments.resident:
        results, is_equal = resident(arguments.images, arguments.limit)
        harness.write(arguments.out, {"images": arguments.images, "resident": results})
        if not is_equal:
            sys.exit("two searches of one gallery differ, or copies do not tie: see above")
        return
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
