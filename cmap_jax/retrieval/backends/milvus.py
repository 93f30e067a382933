"""Milvus beside the embeddings: a short list by inner products, ranked by exact scores.

Without an address, Milvus Lite keeps its files in the index's folder and runs in this process. With
one, the same client speaks to a server or a cluster. docs/search.md has the sizes of a cluster.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cmap_jax.progress import track
from cmap_jax.retrieval.backends import record as record_lib
from cmap_jax.retrieval.backends.entry import BackendEntry
from cmap_jax.retrieval.backends.milvus_client import LITE, TOKEN, Connection, import_lite
from cmap_jax.retrieval.backends.settings import ShortlistSettings, clusters_of
from cmap_jax.retrieval.backends.shortlist import ShortlistBackend
from cmap_jax.retrieval.backends.surrogate import concatenated
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.positions import NO_TARGET

NAME = "milvus"
MOST = 16_384  # images that Milvus returns for a query
_ROWS = 1000  # images inserted at once, 6 MB of 3 x 512 numbers; servers refuse messages of 64 MB
_QUERIES = 64  # queries of a request
_LINKS, _BUILD_EFFORT = 32, 100  # links and effort of a graph, as in FAISS
_MOST_CLUSTERS, _MOST_KEPT = 65_536, 32_768  # as Milvus allows
_TYPES = {
    ("flat", "float32"): "FLAT",
    ("ivf", "float32"): "IVF_FLAT",
    ("ivf", "int8"): "IVF_SQ8",
    ("hnsw", "float32"): "HNSW",
    ("hnsw", "int8"): "HNSW_SQ",
}
_FIELDS = {
    "uri": str,
    "collection": str,
    "kind": str,
    "dtype": str,
    "complete": bool,
    "earlier": list,
}


@dataclasses.dataclass(frozen=True)
class Settings(ShortlistSettings):
    """Settings of the Milvus backend, beside those of every short list.

    Attributes:
        uri: address of a server, such as "http://milvus.internal:19530". Empty: Milvus Lite where
            an index is built, and the address that it was built at where it is opened.
        shards: shards of a new collection, 1 or more.
        replicas: copies of a collection in the servers' memory, which share the searches, 1 or
            more.
        timeout: seconds that a search may take.
    """

    uri: str = ""
    shards: int = 1
    replicas: int = 1
    timeout: float = 30.0

    def __post_init__(self):
        super().__post_init__()
        if self.uri and not self.uri.startswith(("http://", "https://")):
            raise ValueError(f"uri must begin with http:// or https://, not {self.uri!r}")
        if "@" in self.uri:
            raise ValueError(f"uri must hold no password: the variable {TOKEN} holds the token")
        for name in ("shards", "replicas", "timeout"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.shortlist > MOST:
            raise ValueError(f"shortlist must be at most {MOST}, as Milvus returns no more")
        if (self.kind, self.dtype) == ("flat", "int8"):
            raise ValueError("dtype=int8 needs kind=ivf or kind=hnsw in Milvus")

    def form(self, count: int) -> dict[str, str]:
        """Return the kind and the dtype to build; as everywhere, but a flat index is float32."""
        form = super().form(count)
        return form if tuple(form.values()) in _TYPES else {**form, "kind": "ivf"}


def check(settings: Settings, folder: str) -> None:
    """Refuse to build without Milvus's packages, a folder on a disk, or a server that answers."""
    record_lib.check_folder(folder, NAME)
    if settings.uri:
        Connection(settings.uri, folder).close()
    else:
        import_lite()


def build(stored: StoredIndex, settings: Settings, folder: str) -> None:
    """Copy the embeddings into a new collection, and record it beside them.

    Collections of generations of the index that are gone are dropped.

    Args:
        stored: the embeddings of one image or more.
        settings: the address, and the form of the collection.
        folder: the folder of the backend's files, in that of a generation.

    Raises:
        ModuleNotFoundError: a package of Milvus is not installed.
        OSError: Milvus cannot be reached, or refuses.
        ValueError: the folder is in a bucket.
    """
    check(settings, folder)
    form, collection = settings.form(len(stored)), f"cmap_{uuid.uuid4().hex[:16]}"
    kept, unused = _collections(folder, settings.uri)
    record = {"uri": settings.uri, "collection": collection, **form, "earlier": kept + unused}
    # The collection is recorded before it is made, so that a later build knows it after a kill.
    record_lib.write_record(folder, NAME, stored, {**record, "complete": False})
    shutil.rmtree(os.path.join(folder, LITE), ignore_errors=True)
    with contextlib.closing(Connection(settings.uri, folder)) as connection, connection.errors():
        for name in unused:
            connection.client.drop_collection(name)
        _fill(connection.client, collection, stored, settings, form)
    record_lib.write_record(folder, NAME, stored, {**record, "earlier": kept, "complete": True})


def open_backend(stored: StoredIndex, settings: Settings, mesh: Mesh) -> ShortlistBackend:
    """Connect to the collection that was made of some embeddings.

    Args:
        stored: the embeddings.
        settings: the length of the short list, the effort of searches, and the address where the
            collection has moved.
        mesh: devices; the first one computes exact scores.

    Raises:
        ModuleNotFoundError: a package of Milvus is not installed.
        FileNotFoundError: the collection was not made, or is gone.
        OSError: Milvus cannot be reached.
        ValueError: the collection is incomplete, of other embeddings, or in another form than is
            asked for.
    """
    connection, record = _connect(stored, settings)
    proposer = Proposer(connection, record, settings, clusters=_clusters(len(stored)))
    return ShortlistBackend(
        stored, proposer, shortlist=settings.shortlist, mesh=mesh, close=connection.close
    )


def intact(stored: StoredIndex, settings: Settings) -> bool:
    """Tell whether `open_backend` would find the collection that was made of some embeddings.

    Raises:
        OSError: a server cannot be reached.
    """
    try:
        _connect(stored, settings)[0].close()
    except (FileNotFoundError, ValueError):
        return False
    except OSError:
        if settings.uri:
            raise
        # Files that Milvus Lite cannot open are damaged, or another process searches them. A new
        # generation has files of its own, which is right for both.
        return False
    return True


def _connect(stored: StoredIndex, settings: Settings) -> tuple[Connection, dict[str, Any]]:
    """Return a connection to a whole collection, and its record; raises as `open_backend` does."""
    record = record_lib.read_record(stored, NAME, _FIELDS)
    settings.check_form(stored, NAME, record)
    collection = record["collection"]
    connection = Connection(settings.uri or record["uri"], record_lib.backend_folder(stored, NAME))
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        with connection.errors():
            exists = connection.client.has_collection(collection)
            count = _load_and_count(connection.client, collection, settings) if exists else 0
        if count != len(stored) or not record["complete"]:
            raise ValueError(
                f"Milvus at {connection.address}: the collection {collection} has {count:,} of "
                f"{len(stored):,} images; {record_lib.again(stored, NAME)}"
            )
        stack.pop_all()
    return connection, record


class Proposer:
    """Proposes images by their inner products in a collection."""

    def __init__(
        self,
        connection: Connection,
        record: Mapping[str, Any],
        settings: Settings,
        *,
        clusters: int,
    ):
        """Take a connection.

        Args:
            connection: to the server that has the collection.
            record: its name under "collection", and its "kind".
            settings: the effort of searches.
            clusters: clusters of the collection, if it is an ivf.
        """
        self._connection = connection
        self._record = record
        self._settings = settings
        self._clusters = clusters

    def __call__(self, vectors: np.ndarray, width: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return positions by descending inner product; see `shortlist.Propose`."""
        if width > MOST:
            raise ValueError(f"Milvus returns at most {MOST:,} images a query, not {width:,}")
        positions = np.full((len(vectors), width), NO_TARGET)
        for start in range(0, len(vectors), _QUERIES):
            with self._connection.errors():
                answers = self._connection.client.search(
                    self._record["collection"],
                    data=list(vectors[start : start + _QUERIES]),
                    filter=_filter(allowed),
                    limit=width,
                    search_params={"params": self._effort(width, allowed)},
                    timeout=self._settings.timeout,
                )
            for row, hits in zip(positions[start:], answers, strict=False):
                row[: len(hits)] = [hit["position"] for hit in hits]
        return positions

    def _effort(self, width: int, allowed: np.ndarray | None) -> dict[str, int]:
        """Return the parameters of a search."""
        if self._record["kind"] == "ivf":
            return {"nprobe": self._settings.clusters_searched(self._clusters, allowed)}
        if self._record["kind"] == "hnsw":
            kept = self._settings.nodes_kept(width, allowed)
            return {"ef": max(min(kept, _MOST_KEPT), width)}
        return {}


def _filter(allowed: np.ndarray | None) -> str:
    """Return an expression for the images that may be returned, by the shorter of two lists."""
    if allowed is None or allowed.all():
        return ""
    if 2 * allowed.sum() <= len(allowed):
        return f"position in {np.flatnonzero(allowed).tolist()}"
    return f"position not in {np.flatnonzero(~allowed).tolist()}"


def _fill(
    client: Any, collection: str, stored: StoredIndex, settings: Settings, form: Mapping[str, str]
) -> None:
    """Make a collection of all images, index it, and load it into the server's memory."""
    from pymilvus import DataType

    width = stored.manifest.levels * stored.manifest.width
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("position", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    client.create_collection(collection, schema=schema, num_shards=settings.shards)
    starts = range(0, len(stored), _ROWS)
    for start in track(starts, len(starts), "copying", f"blocks of {_ROWS:,} images"):
        rows = range(start, min(start + _ROWS, len(stored)))
        vectors = concatenated(stored.rows(rows))
        images = [{"position": i, "vector": v} for i, v in zip(rows, vectors, strict=True)]
        client.insert(collection, images)
    client.flush(collection)
    index = client.prepare_index_params()
    index.add_index(
        "vector",
        index_type=_TYPES[form["kind"], form["dtype"]],
        metric_type="IP",
        params=_build_parameters(len(stored), **form),
    )
    client.create_index(collection, index)
    if (count := _load_and_count(client, collection, settings)) != len(stored):
        raise OSError(f"the collection {collection} has {count:,} of {len(stored):,} images")


def _build_parameters(count: int, kind: str, dtype: str) -> dict[str, Any]:
    if kind == "ivf":
        return {"nlist": _clusters(count)}
    if kind == "hnsw":
        parameters = {"M": _LINKS, "efConstruction": _BUILD_EFFORT}
        return parameters if dtype == "float32" else {**parameters, "sq_type": "SQ8"}
    return {}


def _clusters(count: int) -> int:
    return min(clusters_of(count), _MOST_CLUSTERS)


def _load_and_count(client: Any, collection: str, settings: Settings) -> int:
    """Have a collection loaded into the server's memory, and return the number of its images."""
    from pymilvus.client.types import LoadState

    # A collection stays loaded on a server, perhaps with other replicas, but not in Milvus Lite.
    if client.get_load_state(collection)["state"] != LoadState.Loaded:
        client.load_collection(collection, replica_number=settings.replicas)
    rows = client.query(collection, output_fields=["count(*)"], consistency_level="Strong")
    return int(rows[0]["count(*)"])


def _collections(folder: str, uri: str) -> tuple[list[str], list[str]]:
    """Return the collections of an index at an address: those in use, and those that are not.

    A collection is in use while the folder of its generation exists, since a service may search
    it. A record lists the collections that were in use before it. Where the record of another
    generation cannot be read, any collection may be the one that it named: all count as in use.

    Args:
        folder: the backend's folder in a generation that is to be built.
        uri: the address; without one there is nothing to drop, since files go with their folder.
    """
    used, known, is_sure = [], [], True
    for other in sorted(pathlib.Path(folder).parents[1].glob(f"*/{NAME}")):
        is_own = other == pathlib.Path(folder)
        try:
            record = json.loads((other / f"{NAME}.json").read_text())
            if not uri or record["uri"] != uri:
                continue
            known += [record["collection"], *record["earlier"]]
        except (OSError, ValueError, TypeError, KeyError):
            is_sure &= is_own
            continue
        if not is_own:
            used.append(record["collection"])
    known = list(dict.fromkeys(known))
    if not is_sure:
        return known, []
    return used, [name for name in known if name not in used]


ENTRY = BackendEntry(
    settings=Settings,
    open=open_backend,
    build=build,
    check=check,
    intact=intact,
    extra="milvus",
)
