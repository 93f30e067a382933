"""Latency and throughput of exact search beside NumPy and beside a FAISS flat index.

python benchmarks/backends.py --out=benchmarks/results/backends.json
python benchmarks/backends.py --images 1000000 --sides numpy exact faiss

CMAP's queries, random, for the best 50 of galleries x 3 x 512. NumPy multiplies as the score is
factorised, with squares that it keeps beside the gallery, and takes the best by `argpartition`.
FAISS compares all images by inner products with the surrogate's vectors, and ranks the short list
by exact scores; its recall on random data means nothing. See `shortlist.py` for that.
"""

import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from ranking import LEVELS, WIDTH, l2, random_query

SIDES = ("numpy", "exact", "faiss", "faiss int8")
BATCHES = {1: 10, 64: 3}  # queries at once, and the number of searches
IMAGES = (10_000, 100_000)
K = 50
_PIECE = 2**14  # images that are made at once


def make_gallery(folder: str, images: int) -> np.ndarray:
    """Return random unit vectors in a mapped file, whose pages leave room for those of an index."""
    rng = np.random.default_rng(0)
    shape = (LEVELS, images, WIDTH)
    gallery = np.memmap(f"{folder}/gallery", np.float32, "w+", shape=shape)
    for level in gallery:
        for start in range(0, images, _PIECE):
            piece = level[start : start + _PIECE]
            piece[:] = l2(rng.standard_normal(piece.shape, np.float32))
    return gallery


def by_numpy(gallery: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Return a search by products of NumPy."""
    squares = np.square(gallery)

    def search(query: Any) -> np.ndarray:
        scores = np.zeros((len(query), gallery.shape[1]), np.float32)
        for level in range(LEVELS):
            for branch in query.branches:
                n, w = (x[level % len(x)] for x in (branch.numerator, branch.weight))
                scores += n @ gallery[level].T / np.sqrt(np.square(w) @ squares[level].T)
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


def by_backend(gallery: np.ndarray, name: str, folder: str, **settings: Any) -> Callable:
    """Return a search by a backend, of an index that is written to a folder."""
    from cmap_jax import sharding
    from cmap_jax.retrieval.backends import BACKENDS, settings_of
    from cmap_jax.retrieval.backends.record import backend_folder
    from cmap_jax.retrieval.catalogue import Item
    from cmap_jax.retrieval.index_files.reading import StoredIndex
    from cmap_jax.retrieval.index_files.writing import write_index

    items = [Item(str(i), f"/{i}", {}) for i in range(gallery.shape[1])]
    write_index(folder, items, gallery, fingerprint="-", variant="cmap")
    stored, chosen = StoredIndex(folder), settings_of(name, settings)
    BACKENDS[name].build(stored, chosen, backend_folder(stored, name))
    backend = BACKENDS[name].open(stored, chosen, sharding.make_mesh())
    return lambda query: backend.search(query, K).positions


def measure(side: str, images: int) -> dict[str, list[float]]:
    """Return the seconds of a side's searches, by the number of queries at once."""
    with tempfile.TemporaryDirectory() as scratch:
        gallery = make_gallery(scratch, images)
        folder = str(pathlib.Path(scratch) / "index")
        if side == "numpy":
            search = by_numpy(np.array(gallery))
        elif side == "exact":
            search = by_backend(gallery, "exact", folder)
        else:
            dtype = "int8" if "int8" in side else "float32"
            search = by_backend(gallery, "faiss", folder, kind="flat", dtype=dtype)
        rng = np.random.default_rng(1)
        queries = {batch: random_query(rng, batch) for batch in BATCHES}
        return {
            str(batch): harness.seconds(lambda q=queries[batch]: search(q), repeats, warm_up=1)
            for batch, repeats in BATCHES.items()
        }


def report(results: dict[str, list[dict]], sizes: list[int]) -> None:
    """Print medians, and the rate of each side as a multiple of the first one's."""
    rows = []
    base, *others = results
    for images in map(str, sizes):
        for batch in map(str, BATCHES):
            middle = {
                side: float(np.median([t for turn in turns for t in turn[images][batch]]))
                for side, turns in results.items()
            }
            first = middle[base]
            rows.append(
                [
                    f"{int(images):,}",
                    batch,
                    *(f"{1000 * seconds:.1f}" for seconds in middle.values()),
                    *(f"{first / middle[side]:.2f}" for side in others),
                ]
            )
    head = ["images", "queries at once", *(f"{side}, ms" for side in results)]
    print(harness.table([*head, *(f"{base} / {side}" for side in others)], rows))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument(
        "--images", type=int, nargs="+", default=list(IMAGES), help="sizes of galleries"
    )
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is measured"
    )
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({str(n): measure(arguments.side, n) for n in arguments.images}))
        return
    sizes = map(str, arguments.images)
    results = harness.take_turns(arguments.sides, arguments.turns, "--images", *sizes)
    report(results, arguments.images)
    harness.write(arguments.out, {"sides": results})


if __name__ == "__main__":
    main()
