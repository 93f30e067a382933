"""Recall@50 of short lists by the surrogate, of FAISS's kinds and dtypes, beside exact search.

python benchmarks/shortlist.py runs/garments_debug runs/photographs --views=7 \
    --out=benchmarks/results/shortlist.json

Each argument is a workdir whose data are where its run had them. The gallery is every image of the
data set; that of the garments has further pictures of each garment with `--views`. The recall is
the share of the 50 best images by exact scores that are among the first M by the index, the mean
over the queries of the last evaluation. It is that of whole searches too, since the M are ranked by
exact scores.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

K = 50
LENGTHS = (50, 100, 200, 300, 500, 1000, 2000)
# Kind and dtype of an index, and how much of it is searched: a share of the clusters or a multiple
# of the short list.
FORMS = (
    ("flat", "float32", None),
    ("flat", "int8", None),
    ("ivf", "float32", 1 / 64),
    ("ivf", "float32", 1 / 16),
    ("ivf", "float32", 1 / 4),
    ("ivf", "int8", 1 / 16),
    ("hnsw", "float32", 1),
    ("hnsw", "float32", 2),
    ("hnsw", "float32", 4),
    ("hnsw", "int8", 2),
)


def pictures(records: Any, views: int) -> Iterator[Any]:
    """Yield the images of a data set, and further views of each garment."""
    from input_pipeline.garments import attributes, drawing
    from input_pipeline.images.sources import open_images

    source = open_images(records)
    for image in records.images:
        yield source.read(image)
    if records.name == "garments":
        for view in range(1, views):
            for index in range(attributes.COUNT):
                yield np.asarray(drawing.render(attributes.garment(index), view=view))


def embed(workdir: pathlib.Path, views: int, queries: int) -> tuple[np.ndarray, Any, str]:
    """Return the gallery's pyramid, composed queries, and the name of their protocol."""
    import cmap_jax
    from input_pipeline.images.sources import open_images
    from input_pipeline.reading import read_folder

    trained = cmap_jax.load(workdir)
    records = read_folder(trained.config.data.name, trained.config.data.directory)
    every = list(pictures(records, views))
    pyramid = trained.encode_images(every)
    evaluation = [e for split in records.evaluations.values() for e in split][-1]
    chosen = np.random.default_rng(0).permutation(len(evaluation.queries))[:queries]
    asked = [evaluation.queries[i] for i in chosen]
    source = open_images(records)
    query = trained.compose([source.read(q.reference) for q in asked], [q.captions for q in asked])
    return pyramid, query, evaluation.protocol.name


def recalls(propose: Any, vectors: np.ndarray, best: np.ndarray, total: int) -> dict[str, float]:
    """Return, in percent by M, how many of the best images the first M hold."""
    result = {}
    for width in LENGTHS:
        if width >= total and width > K:
            continue
        proposed = propose(vectors, width, None)
        hits = [len(np.intersect1d(p, b)) for p, b in zip(proposed, best, strict=True)]
        result[str(width)] = 100 * sum(hits) / best.size
    return result
