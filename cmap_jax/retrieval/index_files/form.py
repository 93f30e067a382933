"""The form of an index on disk, which its writer and its reader share; see docs/search.md.

INDEX/manifest.json             names a generation and describes it; written last
      generation-000001/        a whole index; later ones are written beside it
          generation.json       the model and the form of the numbers
          vectors-00000.safetensors, ...    embeddings of a shard's images
          items-00000.safetensors, ...      their ids, paths and metadata
          shard-00000.json, ...             checksums; a shard that has this file is complete
          unreadable.jsonl      pictures that could not be read, a line each
          exact/, faiss/, ...   files of the search backend, if it keeps any
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from cmap_jax.files import read_json
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.retrieval.index_files.quantization import BFLOAT16, DTYPES, INT8

MANIFEST, GENERATION, UNREADABLE = "manifest.json", "generation.json", "unreadable.jsonl"

# Increased when code that reads the old form would misread the new one.
_FORMAT = 1
_MOST_ROWS, _MOST_BYTES = 8192, 1 << 27  # the size of a shard: the work that a kill may lose
_NAME = re.compile(r"generation-(\d{6,})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """All that is known of an index before anything is embedded.

    Attributes:
        model: absolute path or URL of the model's workdir; None for one that was not loaded.
        fingerprint: `Trained.fingerprint` of the model.
        variant: value of ``config.model.variant``.
        levels: number of levels, L.
        width: length of an embedding, D.
        dtype: one of `quantization.DTYPES`.
        preprocessing: how pictures were read, resized and cropped.
    """

    model: str | None
    fingerprint: str
    variant: str
    levels: int
    width: int
    dtype: str
    preprocessing: ImagePreprocessing

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"no dtype {self.dtype!r}, but {', '.join(DTYPES)}")

    @property
    def image_bytes(self) -> int:
        """Bytes of an image's embeddings."""
        size = {INT8: 1, BFLOAT16: 2}.get(self.dtype, 4)
        return self.levels * (self.width * size + (4 if self.dtype == INT8 else 0))

    @property
    def rows_per_shard(self) -> int:
        """Pictures of the catalogue that a shard is made of; the last one has the rest."""
        return max(1, min(_MOST_ROWS, _MOST_BYTES // self.image_bytes))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON values."""
        names = [field.name for field in dataclasses.fields(Description)]
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "preprocessing": self.preprocessing.to_dict()}

    def same_numbers(self, other: "Description") -> bool:
        """Tell whether an embedding of one index is, to the bit, one of the other."""
        mine, theirs = (Description.to_dict(index) for index in (self, other))
        return {**mine, "model": None} == {**theirs, "model": None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Invert `to_dict`; further fields are passed on to a subclass.

        Raises:
            KeyError, TypeError, ValueError: fields are missing or broken.
        """
        preprocessing = ImagePreprocessing.from_dict(fields["preprocessing"])
        return cls(**{**fields, "preprocessing": preprocessing})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Bytes and CRC-32 of a file."""

    bytes: int
    crc32: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard that is complete.

    Attributes:
        number: its position among the shards; part of its files' names.
        count: images in it.
        unreadable: pictures of the catalogue that it lacks, since they cannot be read.
        vectors: the file of embeddings.
        items: the file of items.
    """

    number: int
    count: int
    unreadable: int
    vectors: FileFacts
    items: FileFacts

    @property
    def files(self) -> dict[str, FileFacts]:
        """The shard's files by name."""
        return {vectors_name(self.number): self.vectors, items_name(self.number): self.items}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Invert `dataclasses.asdict`; raises as `Description.from_dict`."""
        facts = {name: FileFacts(**fields[name]) for name in ("vectors", "items")}
        return cls(**{**fields, **facts})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """The description of an index that is complete.

    Attributes:
        generation: name of the folder that holds it.
        count: number of images, N.
        shards: all shards; together they have ``count`` images.
        fields: kind of each metadata field, see `catalogue.field_kinds`.
        backend: name of the search backend that the index was prepared for.
        settings: values of the backend's settings, by name.
        loss: the measured effect of rounding, see `rounding_loss.Loss`; None for float32, and if it
            could not be measured.
        created: date and time, ISO 8601, UTC.
    """

    generation: str
    count: int
    shards: tuple[Shard, ...]
    fields: Mapping[str, str]
    backend: str
    settings: Mapping[str, Any]
    loss: Mapping[str, Any] | None
    created: str

    @property
    def unreadable(self) -> int:
        """Number of the catalogue's pictures that cannot be read."""
        return sum(shard.unreadable for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's content."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own["shards"] = [dataclasses.asdict(shard) for shard in self.shards]
        return {"format": _FORMAT, **own, **super().to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Invert `to_dict`; raises as `Description.from_dict`."""
        shards = tuple(Shard.from_dict(shard) for shard in fields["shards"])
        others = {name: value for name, value in fields.items() if name != "format"}
        manifest = super().from_dict({**others, "shards": shards})
        if manifest.count != sum(shard.count for shard in shards):
            raise ValueError(f"its shards do not hold {manifest.count} images")
        return manifest


def vectors_name(number: int) -> str:
    """Return the name of a shard's file of embeddings."""
    return f"vectors-{number:05}.safetensors"


def items_name(number: int) -> str:
    """Return the name of a shard's file of items."""
    return f"items-{number:05}.safetensors"


def marker_name(number: int) -> str:
    """Return the name of the file that makes a shard complete."""
    return f"shard-{number:05}.json"


def generations(folder: str | os.PathLike) -> list[str]:
    """Return the names of the generations in a folder, complete or not, oldest first."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted((n for n in names if _NAME.fullmatch(n)), key=generation_number)


def next_generation(folder: str | os.PathLike) -> str:
    """Return the name of a generation that is newer than all in a folder."""
    newest = max(map(generation_number, generations(folder)), default=0)
    return f"generation-{newest + 1:06}"


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """Return the manifest of an index.

    Raises:
        FileNotFoundError: there is none; says whether an index was begun.
        ValueError: damaged, or of another form.
    """
    path = epath.Path(folder) / MANIFEST
    if not path.exists():
        begun = " an index was begun there and is unfinished:" if generations(folder) else ""
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no index (no {MANIFEST}):{begun} run cmap index --model "
            f"WORKDIR --images DIR --out {os.fspath(folder)}"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} has another form than this version of cmap_jax reads")
    try:
        return Manifest.from_dict(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; restore it, or make the index again in a new folder"
        ) from error


def generation_number(name: str) -> int:
    """Return a generation's number; newer ones have greater numbers."""
    return int(_NAME.fullmatch(name)[1])
