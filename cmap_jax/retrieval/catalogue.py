"""The pictures of a catalogue, each with an id and metadata: of a folder, or of a list.

items = items_of_folder("photographs")              # ids: paths in the folder
items = items_of_list("catalogue.csv", "pictures")  # columns id, image and any others
items[0].metadata["color"]
"""

import dataclasses
import os
import types
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from cmap_jax.files import is_remote
from cmap_jax.retrieval.lists import LARGEST, Row, Value, read_rows
from cmap_jax.retrieval.lists import SUFFIXES as LIST_SUFFIXES

ID, IMAGE = "id", "image"  # columns of a list that are no metadata

# The kinds of a metadata field.
TEXT, TEXTS, BOOLEAN, INTEGER, NUMBER = "text", "texts", "boolean", "integer", "number"

_PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jxl", ".jp2"),
)
_NOTHING: Mapping[str, Value] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A picture of a catalogue.

    Attributes:
        id: names it among all others.
        image: absolute path or bucket URL of the picture.
        metadata: by field: text, texts, an integer, a number, true or false; None: not known.
    """

    id: str
    image: str
    metadata: Mapping[str, Value] = dataclasses.field(default_factory=lambda: _NOTHING)


def items_of(source: str | os.PathLike | Sequence[Item]) -> list[Item]:
    """Return the items of a folder, of a list file, or of a sequence, which is checked.

    Raises:
        FileNotFoundError, OSError, ValueError: as `items_of_folder`, `items_of_list` and
            `check_items`.
    """
    if not isinstance(source, str | os.PathLike):
        items = list(source)
        check_items(items, "the items")
        return items
    is_list = os.fspath(source).casefold().endswith(LIST_SUFFIXES)
    return items_of_list(source) if is_list else items_of_folder(source)


def items_of_folder(directory: str | os.PathLike) -> list[Item]:
    """Return all pictures below a folder, by their suffix; hidden files and folders are left out.

    Args:
        directory: local or in a bucket; links to folders are not followed.

    Returns:
        Items whose ids are paths relative to the folder, with "/", in the order of the ids.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it, or a folder below it, cannot be read.
        ValueError: it holds no picture, or its name is not UTF-8.
    """
    base = _absolute(os.fspath(directory))
    folder = epath.Path(base)
    if not folder.is_dir():
        if folder.exists():
            raise NotADirectoryError(
                f"{base}: a file, not a folder of pictures; a list of pictures ends in "
                f"{', '.join(LIST_SUFFIXES)}"
            )
        raise FileNotFoundError(f"{base}: there is no such folder of pictures")
    ids = sorted(_pictures_below(folder, base))
    if not ids:
        raise ValueError(f"{base}: no pictures in it or below it ({' '.join(_PICTURES)})")
    prefix = base.rstrip("/") + "/"
    return [Item(name, prefix + name) for name in ids]


def items_of_list(path: str | os.PathLike, images: str | os.PathLike | None = None) -> list[Item]:
    """Return the pictures that a list names, in its order.

    Args:
        path: a ``.csv``, ``.jsonl`` or ``.parquet`` file, local or in a bucket. Its column
            ``image`` is a path or a bucket URL, ``id`` names the picture (default: ``image``), and
            all others are metadata. The values of a CSV column are integers, numbers, or true and
            false where all of them can be read so, and else texts; empty ones are not known.
        images: folder that relative paths start from; None: that of the list.

    Raises:
        FileNotFoundError: no such list, or no such folder.
        ModuleNotFoundError: a Parquet file, and no pyarrow; names the package to install.
        ValueError: a list that is damaged or empty, a row without a picture, two rows with one id,
            or a field whose values are of several kinds; names the line. Or a folder whose name is
            not UTF-8.
    """
    path = os.fspath(path)
    base = _absolute(os.fspath(images)) if images is not None else os.path.dirname(_absolute(path))
    if images is not None and not epath.Path(base).is_dir():
        raise FileNotFoundError(f"{base}: there is no such folder of pictures")
    items = [_item(row, base) for row in read_rows(path)]
    if not items:
        raise ValueError(f"{path}: no rows, and so no pictures")
    check_items(items, path)
    return items


def check_items(items: Sequence[Item], source: str) -> None:
    """Refuse items without an id of their own that an address can hold, or with mixed fields.

    Args:
        items: of a list, or given by a program.
        source: begins the message, such as the file that lists them.

    Raises:
        ValueError: names the item.
    """
    seen: set[str] = set()
    for item in items:
        if not item.id:
            raise ValueError(f"{source}: the picture {item.image} has an empty id")
        if item.id in (".", ".."):  # browsers and proxies take such a segment of an address away
            raise ValueError(
                f"{source}: the picture {item.image} has the id {item.id!r}, which stands for a "
                "folder in an address: give it another"
            )
        if item.id in seen:
            raise ValueError(f"{source}: two pictures have the id {item.id!r}; ids must differ")
        seen.add(item.id)
    try:
        field_kinds(items)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def field_kinds(items: Iterable[Item]) -> dict[str, str]:
    """Return the kind of each metadata field: text, texts, boolean, integer or number.

    A field without any known value is text. Integers and numbers together are numbers.

    Raises:
        ValueError: a value of no such kind, values of several kinds, an integer that is no exact
            float64, or a name that is not UTF-8; names the items.
    """
    kinds: dict[str, str] = {}
    first: dict[str, str] = {}
    for item in items:
        for field, value in item.metadata.items():
            if field not in kinds and not (isinstance(field, str) and is_unicode(field)):
                raise ValueError(f"{item.id!r} has a field {field!r:.60}, whose name is no text")
            kind = _kind(value)
            if kind == "" and isinstance(value, int):
                raise ValueError(
                    f"{field} of {item.id!r} is an integer of more than {len(str(LARGEST))} "
                    "digits, which filters cannot tell from its neighbors: make all values texts"
                )
            if kind == "":
                raise ValueError(
                    f"{field} of {item.id!r} is {value!r:.60}: metadata are text, numbers, true "
                    "and false, or lists of texts"
                )
            if kind is None or kinds.get(field) == kind:
                kinds.setdefault(field, "")
                continue
            known = kinds.get(field)
            if known and {known, kind} != {INTEGER, NUMBER}:
                raise ValueError(
                    f"{field} is {known} for {first[field]!r} and {kind} for {item.id!r}: a field "
                    "has values of one kind"
                )
            kinds[field] = NUMBER if known else kind
            first.setdefault(field, item.id)
    return {field: kind or TEXT for field, kind in kinds.items()}


def _kind(value: object) -> str | None:
    """Return the kind of a value; None for None, and an empty text for what is no metadata."""
    if value is None:
        return None
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int | float):
        if isinstance(value, float):
            return NUMBER
        return INTEGER if abs(value) <= LARGEST else ""
    if isinstance(value, str):
        return TEXT if is_unicode(value) else ""
    is_texts = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    return TEXTS if is_texts and all(map(is_unicode, value)) else ""


def is_unicode(text: str) -> bool:
    """Tell whether a text can be stored; half of a surrogate pair cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _pictures_below(folder: epath.Path, base: str) -> Iterable[str]:
    """Yield the paths of pictures below a folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise error  # a part of the catalogue would be left out silently

    start = len(_without_scheme(base))
    for top, folders, names in folder.walk(on_error=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = _without_scheme(os.fspath(top))[start:].strip("/")
        if any(part.startswith(".") for part in inside.split("/")):
            continue  # a bucket is listed whole
        for name in names:
            if name.casefold().endswith(_PICTURES) and not name.startswith("."):
                yield f"{inside}/{name}" if inside else name


def _item(row: Row, base: str) -> Item:
    """Return the item of a row of a list."""
    fields = dict(row.values)
    image, name = fields.pop(IMAGE, None), fields.pop(ID, None)
    if not isinstance(image, str) or not image:
        raise ValueError(f"{row.where}: no path in the column {IMAGE!r}, but {image!r:.60}")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{row.where}: an id is a text or an integer, not {name!r:.60}")
    return Item(image if name is None else name, _locate(image, base, row.where), fields)


def _locate(image: str, base: str, where: str) -> str:
    """Return the absolute path or URL of a picture that a list names."""
    if not is_remote(image):
        if is_remote(base):
            return f"{base}/{image}"
        return os.path.normpath(os.path.join(base, image))
    try:
        epath.Path(image)
    except KeyError as error:
        raise ValueError(
            f"{where}: {image:.100} cannot be opened: pictures are read from folders and buckets "
            "(gs://, s3://); download those of the web first"
        ) from error
    return image


def _without_scheme(path: str) -> str:
    """Return a path without "gs://" or the like, which some listings of buckets leave out."""
    return path.partition("://")[2] if is_remote(path) else path


def _absolute(path: str) -> str:
    """Return the absolute path of a folder, or the URL of one in a bucket.

    Raises:
        ValueError: it is not UTF-8. An index cannot hold the paths of its pictures.
    """
    path = path.rstrip("/") if is_remote(path) else os.path.abspath(path)
    if not is_unicode(path):
        raise ValueError(f"{path!a}: the name of this folder is not UTF-8: rename it")
    return path
