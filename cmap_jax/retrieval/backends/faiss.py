"""FAISS beside the embeddings: a short list by inner products, ranked by exact scores.

The index is one file, which is read into memory. docs/search.md has the recall that the defaults
were chosen by.
"""

import os
import zlib
from types import ModuleType
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cmap_jax.files import check_regular_file, scratch_file
from cmap_jax.progress import track
from cmap_jax.retrieval.backends import record as record_lib
from cmap_jax.retrieval.backends.entry import BackendEntry
from cmap_jax.retrieval.backends.settings import ShortlistSettings, clusters_of
from cmap_jax.retrieval.backends.shortlist import ShortlistBackend
from cmap_jax.retrieval.backends.surrogate import concatenated, sample_positions
from cmap_jax.retrieval.index_files.reading import StoredIndex

NAME = "faiss"
_FILE = "faiss.index"
_CODECS = {"float32": "Flat", "int8": "SQ8"}  # as `faiss.index_factory` spells them
_ROWS = 8192  # images added at once
_LINKS = 32  # links of a node of the graph
_BUILD_EFFORT = 100  # nodes that are kept while one is linked into the graph
_PER_CLUSTER = 64  # images that a cluster's center is computed from
_FOR_CODEC = 2**15  # images that the range of int8 numbers is taken from
_SCANNED = 16  # a walk that keeps one of so many nodes is slower than comparing all
_PIECE = 2**24  # bytes read at once for a checksum
_FIELDS = {"bytes": int, "crc32": int, "kind": str, "dtype": str}


def check(settings: ShortlistSettings, folder: str) -> None:
    """Refuse to build without FAISS, or in a folder that its files cannot be written to."""
    _import()
    record_lib.check_folder(folder, NAME)


def build(stored: StoredIndex, settings: ShortlistSettings, folder: str) -> None:
    """Build an index of the embeddings and write it beside them.

    Args:
        stored: the embeddings of one image or more.
        settings: the kind and the dtype to build.
        folder: the folder of the backend's files; local.

    Raises:
        ModuleNotFoundError: FAISS is not installed.
        OSError: the folder cannot be written.
        ValueError: the folder is in a bucket.
    """
    check(settings, folder)
    faiss, form = _import(), settings.form(len(stored))
    index = _trained(faiss, stored, **form)
    starts = range(0, len(stored), _ROWS)
    for start in track(starts, len(starts), "indexing", f"blocks of {_ROWS:,} images"):
        rows = np.arange(start, min(start + _ROWS, len(stored)))
        index.add(concatenated(stored.rows(rows)))
    record_lib.write_record(folder, NAME, stored, {**_write(faiss, index, folder), **form})


def open_backend(stored: StoredIndex, settings: ShortlistSettings, mesh: Mesh) -> ShortlistBackend:
    """Return searches in the index that was built of some embeddings; see `open_proposer`.

    Args:
        stored: the embeddings.
        settings: the length of the short list and the effort of searches.
        mesh: devices; the first one computes exact scores.
    """
    proposer = open_proposer(stored, settings)
    return ShortlistBackend(stored, proposer, shortlist=settings.shortlist, mesh=mesh)


def open_proposer(stored: StoredIndex, settings: ShortlistSettings) -> "Proposer":
    """Read the index that was built of some embeddings.

    Raises:
        ModuleNotFoundError: FAISS is not installed.
        FileNotFoundError: the index was not built.
        ValueError: it is damaged, of other embeddings, or in another form than is asked for.
    """
    faiss = _import()
    path, record = _files(stored, settings)
    return Proposer(faiss, faiss.read_index(path), record["kind"], settings)


def intact(stored: StoredIndex, settings: ShortlistSettings) -> bool:
    """Tell whether `open_proposer` would read the index that was built of some embeddings."""
    try:
        _files(stored, settings)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _files(stored: StoredIndex, settings: ShortlistSettings) -> tuple[str, dict[str, Any]]:
    """Return the path of a whole index, and its record; raises as `open_proposer` does."""
    record = record_lib.read_record(stored, NAME, _FIELDS)
    settings.check_form(stored, NAME, record)
    path, remedy = os.path.join(record_lib.backend_folder(stored, NAME), _FILE), record_lib.again
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; {remedy(stored, NAME)}")
    if os.path.getsize(path) != record["bytes"] or _checksum(path) != record["crc32"]:
        raise ValueError(f"{path} is damaged: its checksum is another; {remedy(stored, NAME)}")
    return path, record


class Proposer:
    """Proposes images by their inner products in a FAISS index."""

    def __init__(self, faiss: ModuleType, index: Any, kind: str, settings: ShortlistSettings):
        """Take an index of the kind "flat", "ivf" or "hnsw"."""
        self._faiss = faiss
        self._index = index
        self._kind = kind
        self._settings = settings

    def __call__(self, vectors: np.ndarray, width: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return positions by descending inner product; see `shortlist.Propose`."""
        index, selector = self._index, None
        if allowed is not None:
            selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        parameters = self._faiss.SearchParameters(sel=selector)
        if self._kind == "ivf":
            clusters = self._settings.clusters_searched(index.nlist, allowed)
            parameters = self._faiss.SearchParametersIVF(sel=selector, nprobe=clusters)
        if self._kind == "hnsw":
            kept = self._settings.nodes_kept(width, allowed)
            if kept > index.ntotal // _SCANNED:
                index = index.storage
            else:
                parameters = self._faiss.SearchParametersHNSW(sel=selector, efSearch=kept)
        return index.search(vectors, width, params=parameters)[1]


def _import() -> ModuleType:
    # Imported where it is used: the table of backends is read without it.
    import faiss

    return faiss


def _trained(faiss: ModuleType, stored: StoredIndex, kind: str, dtype: str) -> Any:
    """Return an index of inner products without images, trained on a sample where it must be."""
    codec, clusters = _CODECS[dtype], clusters_of(len(stored))
    form = {"flat": codec, "ivf": f"IVF{clusters},{codec}", "hnsw": f"HNSW{_LINKS},{codec}"}[kind]
    width = stored.manifest.levels * stored.manifest.width
    index = faiss.index_factory(width, form, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _PER_CLUSTER, 1
    if kind == "hnsw":
        index.hnsw.efConstruction = _BUILD_EFFORT
    if not index.is_trained:
        most = max(_PER_CLUSTER * clusters, _FOR_CODEC)
        index.train(concatenated(stored.rows(sample_positions(len(stored), most))))
    return index


def _write(faiss: ModuleType, index: Any, folder: str) -> dict[str, int]:
    """Write an index under a temporary name, rename it, and return its size and checksum."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, _FILE)
    with scratch_file(path) as scratch:
        faiss.write_index(index, os.fspath(scratch))
        facts = {"bytes": os.path.getsize(scratch), "crc32": _checksum(os.fspath(scratch))}
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    return facts


def _checksum(path: str) -> int:
    """Return a file's CRC-32."""
    check_regular_file(path)
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


ENTRY = BackendEntry(
    settings=ShortlistSettings,
    open=open_backend,
    build=build,
    check=check,
    intact=intact,
    extra="faiss",
)
