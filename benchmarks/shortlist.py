"""Recall@50 of searches with a short list, by its length, beside exact search.

python benchmarks/shortlist.py runs/garments runs/photographs \
    --out=benchmarks/results/shortlist.json

Each argument is a workdir whose data are where its run had them. The gallery is every image of the
data set, and the queries are drawn from its last evaluation. The recall is the share of the 50 best
images by exact scores that the index proposes, the mean over the queries. It is that of whole
searches too, since the exact scores of the proposed images rank them. Two rows are of other vectors
than the surrogate's: the sum of the numerators, and that of the numerators over expected norms.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import harness
import numpy as np

K = 50
LENGTHS = (100, 150, 200, 300, 500, 1000, 2000)
FLAT = (("flat", "float32"), ("flat", "int8"))
# Kinds that search a part of the index, and how much: clusters as a fraction of all, or nodes as a
# multiple of the short list.
PARTIAL = (
    ("ivf", "float32", (1 / 16, 1 / 8, 1 / 4)),
    ("ivf", "int8", (1 / 16,)),
    ("hnsw", "float32", (1, 2)),
    ("hnsw", "int8", (2,)),
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
        from cmap_jax.retrieval.backends.shortlist import fit_surrogate
        from cmap_jax.retrieval.catalogue import Item
        from cmap_jax.retrieval.exact import ExactIndex
        from cmap_jax.retrieval.index_files.reading import StoredIndex
        from cmap_jax.retrieval.index_files.writing import write_index

        items = [Item(str(i), f"/{i}", {}) for i in range(pyramid.shape[1])]
        write_index(folder, items, pyramid, fingerprint="-", variant="cmap")
        self.stored, self.query = StoredIndex(folder), query
        self.best = ExactIndex(pyramid, sharding.make_mesh()).search(query, K).positions
        self.surrogate = fit_surrogate(self.stored)

    def build(self, kind: str, dtype: str) -> None:
        """Build an index; it replaces the one before."""
        from cmap_jax.retrieval.backends import BACKENDS, settings_of
        from cmap_jax.retrieval.backends.record import backend_folder

        settings = settings_of("faiss", {"kind": kind, "dtype": dtype})
        BACKENDS["faiss"].build(self.stored, settings, backend_folder(self.stored, "faiss"))

    def proposals(self, width: int, **effort: int) -> np.ndarray:
        """Return the positions that the index proposes, best first."""
        from cmap_jax.retrieval.backends import settings_of
        from cmap_jax.retrieval.backends.faiss import open_proposer

        propose = open_proposer(self.stored, settings_of("faiss", effort))
        return propose(self.surrogate.vectors(self.query), width, None)

    def recall(self, proposals: np.ndarray) -> float:
        """Return the recall of some proposals, in percent."""
        pairs = zip(self.best, proposals, strict=True)
        return 100 * float(np.mean([np.isin(b, p).mean() for b, p in pairs]))

    def by_other_vectors(self) -> dict[str, np.ndarray]:
        """Return all positions in the order of products with simpler vectors, by their name."""
        from cmap_jax.retrieval.backends.surrogate import concatenated

        pyramid = self.stored.rows(np.arange(len(self.stored)))
        shape = (len(pyramid), len(self.query), pyramid.shape[2])
        vectors = {
            "numerators": concatenated(
                sum(np.broadcast_to(b.numerator, shape) for b in self.query.branches)
            ),
            "expected norms": self.surrogate.by_expected_norms(self.query),
        }
        rows = concatenated(pyramid)
        return {name: np.argsort(-v @ rows.T, axis=1) for name, v in vectors.items()}


def measure(gallery: Gallery) -> list[dict]:
    """Return the recalls in percent of all forms, by the length of the list."""
    from cmap_jax.retrieval.backends.settings import clusters_of

    total = len(gallery.stored)
    lengths = [m for m in LENGTHS if m < total]
    orders = {f"flat float32, {name}": o for name, o in gallery.by_other_vectors().items()}
    for kind, dtype in FLAT:
        gallery.build(kind, dtype)
        orders[f"{kind} {dtype}"] = gallery.proposals(max(lengths))
    rows = [
        {"form": form, "recall": {m: gallery.recall(order[:, :m]) for m in lengths}}
        for form, order in orders.items()
    ]
    for kind, dtype, efforts in PARTIAL:
        gallery.build(kind, dtype)
        for factor in efforts:
            name = "nprobe" if kind == "ivf" else "ef_search"
            recall = {}
            for m in PARTIAL_LENGTHS:
                effort = round(factor * (clusters_of(total) if kind == "ivf" else m))
                recall[m] = gallery.recall(gallery.proposals(m, **{name: effort}))
            rows.append({"form": f"{kind} {dtype}, {name} x {factor:g}", "recall": recall})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path, help="workdirs of trained models")
    parser.add_argument("--queries", type=int, default=1000, help="of each; default: 1000")
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
