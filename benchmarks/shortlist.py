"""Recall@50 of searches with a short list, by its length, beside exact search.

python benchmarks/shortlist.py runs/garments runs/photographs \
    --out=benchmarks/results/shortlist.json

Each argument is a workdir whose data are where its run had them. The gallery is every image of the
data set, and the queries are drawn from its last evaluation. A search finds those of the 50 best
images by exact scores that its index proposes; the recall is their share, the mean over the
queries. Two rows are of inner products with other vectors than the surrogate's: the sum of the
numerators, and that of the numerators over their expected norms.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import harness
import numpy as np

K = 50
LENGTHS = (100, 150, 200, 300, 500, 1000, 2000)
FLAT = (("flat", "float32"), ("flat", "int8"))
# Kinds that search a part of the index, with the setting that says how much.
PARTIAL = (
    ("ivf", "float32", {"nprobe": 0.0625}),  # a fraction of the clusters
    ("ivf", "float32", {"nprobe": 0.25}),
    ("ivf", "int8", {"nprobe": 0.0625}),
    ("hnsw", "float32", {"ef_search": 1}),  # a multiple of the short list
    ("hnsw", "float32", {"ef_search": 2}),
    ("hnsw", "int8", {"ef_search": 2}),
)
PARTIAL_LENGTHS = (300, 500)


def embed(workdir: pathlib.Path, file: pathlib.Path, queries: int) -> None:
    """Write the embeddings of a data set's images, and composed queries, to a file."""
    import cmap_jax
    from input_pipeline.images.sources import open_images
    from input_pipeline.reading import read_folder

    trained = cmap_jax.load(workdir)
    records = read_folder(trained.config.data.name, trained.config.data.directory)
    source = open_images(records)
    evaluation = [e for split in records.evaluations.values() for e in split][-1]
    order = np.random.default_rng(0).permutation(len(evaluation.queries))
    asked = [evaluation.queries[i] for i in order[:queries]]
    query = trained.compose([source.read(q.reference) for q in asked], [q.captions for q in asked])
    arrays = {"gallery": trained.encode_images([source.read(image) for image in records.images])}
    for number, branch in enumerate(query.branches):
        arrays[f"n{number}"] = branch.numerator
        if branch.weight is not None:
            arrays[f"w{number}"] = branch.weight
    np.savez(file, levels=np.array(query.levels), **arrays)


def read(file: pathlib.Path, queries: int) -> tuple[np.ndarray, Any]:
    """Return a gallery's pyramid, and composed queries."""
    from cmap_jax import scoring

    arrays = np.load(file)
    branches = []
    while (name := f"n{len(branches)}") in arrays:
        weight = name.replace("n", "w")
        vectors = [arrays[x][:, :queries] if x in arrays else None for x in (name, weight)]
        branches.append(scoring.Branch(*vectors))
    names = tuple(map(str, range(len(branches))))
    levels = tuple(map(str, arrays["levels"]))
    return arrays["gallery"], scoring.ComposedQuery(tuple(branches), None, names, levels)


class Gallery:
    """An index of some embeddings, and what exact search finds in it."""

    def __init__(self, folder: pathlib.Path, pyramid: np.ndarray, query: Any):
        from cmap_jax import sharding
        from cmap_jax.retrieval.catalogue import Item
        from cmap_jax.retrieval.exact import ExactIndex
        from cmap_jax.retrieval.index_files.reading import StoredIndex
        from cmap_jax.retrieval.index_files.writing import write_index

        items = [Item(str(i), f"/{i}", {}) for i in range(pyramid.shape[1])]
        write_index(folder, items, pyramid, fingerprint="-", variant="cmap")
        self.stored, self.query, self.mesh = StoredIndex(folder), query, sharding.make_mesh()
        self.best = ExactIndex(pyramid, self.mesh).search(query, K).positions

    def recalls(self, kind: str, dtype: str, searches: Sequence[dict]) -> list[float]:
        """Build an index, and return the recall in percent of searches with some settings."""
        from cmap_jax.retrieval.backends import BACKENDS, settings_of
        from cmap_jax.retrieval.backends.record import backend_folder

        entry, form = BACKENDS["faiss"], {"kind": kind, "dtype": dtype}
        entry.build(self.stored, settings_of("faiss", form), backend_folder(self.stored, "faiss"))
        result = []
        for settings in searches:
            backend = entry.open(self.stored, settings_of("faiss", settings), self.mesh)
            positions = backend.search(self.query, K).positions
            hits = [np.isin(b, p).sum() for b, p in zip(self.best, positions, strict=True)]
            result.append(100 * float(sum(hits)) / self.best.size)
        return result

    def by_other_vectors(self, lengths: Sequence[int]) -> dict[str, list[float]]:
        """Return the recalls in percent of lists by simpler vectors than the surrogate's."""
        from cmap_jax.retrieval.backends.shortlist import fit_surrogate
        from cmap_jax.retrieval.backends.surrogate import concatenated

        pyramid = self.stored.rows(np.arange(len(self.stored)))
        shape = (len(pyramid), len(self.query), pyramid.shape[2])
        total = sum(np.broadcast_to(b.numerator, shape) for b in self.query.branches)
        norms = fit_surrogate(self.stored).by_expected_norms(self.query)
        results = {}
        for name, vectors in (("numerators", concatenated(total)), ("expected norms", norms)):
            products = vectors @ concatenated(pyramid).T
            order = np.argsort(-products, axis=1)[:, : max(lengths)]
            pairs = list(zip(self.best, order, strict=True))
            results[name] = [
                100 * float(np.mean([np.isin(b, o[:m]).mean() for b, o in pairs])) for m in lengths
            ]
        return results


def measure(gallery: Gallery) -> list[dict]:
    """Return the recalls of all forms, each with its settings."""
    from cmap_jax.retrieval.backends.settings import clusters_of

    total = len(gallery.stored)
    lengths = [m for m in LENGTHS if m < total]
    rows = [
        {"form": f"flat float32, {name}", "recall": dict(zip(lengths, recalls, strict=True))}
        for name, recalls in gallery.by_other_vectors(lengths).items()
    ]
    for kind, dtype in FLAT:
        recalls = gallery.recalls(kind, dtype, [{"shortlist": m} for m in lengths])
        recall = dict(zip(lengths, recalls, strict=True))
        rows.append({"form": f"{kind} {dtype}", "recall": recall})
    scales = {
        "nprobe": lambda m, x: round(x * clusters_of(total)),
        "ef_search": lambda m, x: round(x * m),
    }
    for kind, dtype, effort in PARTIAL:
        ((name, factor),) = effort.items()
        searches = [{"shortlist": m, name: scales[name](m, factor)} for m in PARTIAL_LENGTHS]
        recalls = gallery.recalls(kind, dtype, searches)
        recall = dict(zip(PARTIAL_LENGTHS, recalls, strict=True))
        rows.append({"form": f"{kind} {dtype}, {name} {factor:g}", "recall": recall})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--embeddings", type=pathlib.Path, help="folder that keeps them for later")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the figures to")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.embeddings or pathlib.Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for workdir in arguments.workdirs:
            file = folder / f"{workdir.name}.npz"
            if not file.exists():
                embed(workdir, file, arguments.queries)
            pyramid, query = read(file, arguments.queries)
            gallery = Gallery(pathlib.Path(scratch) / workdir.name, pyramid, query)
            rows = measure(gallery)
            results[workdir.name] = {
                "images": pyramid.shape[1],
                "queries": len(query),
                "rows": rows,
            }
            print(f"{workdir.name}: {pyramid.shape[1]:,} images, {len(query):,} queries\n")
            cells = [[r["form"], *(_cell(r["recall"].get(m)) for m in LENGTHS)] for r in rows]
            print(harness.table(["recall@50, %", *map(str, LENGTHS)], cells), flush=True)
    harness.write(arguments.out, results)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
