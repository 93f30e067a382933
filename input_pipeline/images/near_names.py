"""Near names: files that have a missing image's name, written in another way.

File systems, archives and spreadsheets may rewrite a name: its Unicode form, letter case,
extension, leading zeros, percent-encoding, or spaces around it.

    near = find(records, missing)         # the files with near names, for messages
    records = accept(records, missing)    # the records with these files for the missing images
"""

import collections
import dataclasses
import functools
import itertools
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence

from input_pipeline import storage
from input_pipeline.readers.annotations import IMAGE_SUFFIXES
from input_pipeline.records import Image, Records

# The beginnings of the reasons of missing images with near names.
CERTAIN, UNCERTAIN = "missing, but there is", "missing; uncertain near names"
FLAG = "--config.data.near_names=accept"

_SUFFIXES = (*IMAGE_SUFFIXES, ".jpe", ".jfif", ".heic", ".heif", ".avif")
_SHOWN = 3  # near names in a reason


def _without_suffix(name: str) -> str:
    """Return a name without its suffix, or without both of ``1.png.jpg``."""
    stem, dot, suffix = name.rpartition(".")
    return _without_suffix(stem) if stem and dot + suffix.lower() in _SUFFIXES else name


def _without_outer_spaces(name: str) -> str:
    """Return a name without spaces around it and around the part before its suffix."""
    stem = _without_suffix(name.strip())
    return stem.strip() + name.strip()[len(stem) :]


# Kinds of difference between names, and functions that undo them, which are applied in this order.
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("percent-encoding", urllib.parse.unquote),
    ("Unicode form", functools.partial(unicodedata.normalize, "NFC")),
    ("letter case", str.casefold),
    ("outer spaces", _without_outer_spaces),
    ("extension", _without_suffix),
    ("leading zeros", functools.partial(re.sub, r"(?<!\d)0+(?=\d)", "")),
)


@dataclasses.dataclass(frozen=True)
class Near:
    """The files that may be a missing image's.

    Attributes:
        paths: one path a file.
        names: one name a file; with its folder where this is not the image's.
        certain: whether there is only one file, and it can be no other image's.
        difference: how the first file's name differs, such as "letter case".
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    certain: bool
    difference: str

    def reason(self) -> str:
        """Return why the image cannot be used; see `check.check_images`."""
        if self.certain:
            return f"{CERTAIN} {self.names[0]!r}, which differs in {self.difference}"
        more = ", ..." if len(self.names) > _SHOWN else ""
        return f"{UNCERTAIN}: {', '.join(map(repr, self.names[:_SHOWN]))}{more}"


def difference(name: str, other: str) -> str:
    """Return the fewest kinds of difference between two names, or nothing if there are others."""
    kinds = range(1, len(_FORMS) + 1)
    for forms in itertools.chain(*(itertools.combinations(_FORMS, n) for n in kinds)):
        if _undo(name, forms) == _undo(other, forms):
            return " and ".join(kind for kind, _ in forms)
    return ""


def find(records: Records, missing: Iterable[str]) -> dict[str, Near]:
    """Return the near names of missing images, by id, where there are any.

    The search covers the folder where an image is expected, or a folder with a near name in its
    place; and, where the image is named without a folder, all folders that the reader searches.

    Args:
        records: the data set.
        missing: ids of the missing images.
    """
    listing = _Listing()
    candidates: dict[str, tuple[str, ...]] = {}
    for i in missing:
        image = records.images[i]
        near = set(listing.follow(records.image_directory, image.path))
        if "/" not in i:
            near |= set(listing.near_in_any(records.searched, image.path.rpartition("/")[2]))
        if paths := sorted(path for path in near if not _is_folder(path)):
            candidates[i] = tuple(paths)
    if not candidates:
        return {}
    claims = collections.Counter(itertools.chain(*candidates.values()))
    claims.update(image.path for image in records.images.values())
    return {
        i: Near(
            paths,
            tuple(_shown(path, records.images[i].path, records.image_directory) for path in paths),
            certain=len(paths) == 1 and claims[paths[0]] == 1,
            difference=_difference_of_files(paths[0], records.images[i].path),
        )
        for i, paths in candidates.items()
    }


def accept(records: Records, missing: Iterable[str]) -> Records:
    """Return the records with near names taken for missing images, where these are certain.

    Args:
        records: the data set.
        missing: ids of the missing images.
    """
    near = find(records, missing)
    accepted = {i: Image(i, n.paths[0]) for i, n in near.items() if n.certain}
    return dataclasses.replace(
        records.with_images({**records.images, **accepted}), near_names=tuple(accepted)
    )


def shared_form(name: str) -> str:
    """Return the form that a name shares with all names that are near to it."""
    return _undo(name, _FORMS)


def _undo(name: str, forms: Sequence[tuple[str, Callable[[str], str]]]) -> str:
    """Return a name after undoing some kinds of difference."""
    return functools.reduce(lambda text, form: form[1](text), forms, name)


def _is_folder(path: str) -> bool:
    """Tell whether there is a folder; a name with the suffix of an image is taken for a file."""
    name = path.rpartition("/")[2]
    return name == _without_suffix(name) and storage.is_folder(path)


def _shown(path: str, expected: str, root: str) -> str:
    """Return a file's name; with its folders where the file is not in the expected folder."""
    folder, _, name = path.rpartition("/")
    same = folder == expected.rpartition("/")[0]
    return name if same else path.removeprefix(f"{root.rstrip('/')}/")


def _difference_of_files(path: str, expected: str) -> str:
    """Return how a file's name differs, or otherwise the name of a folder on the way to it."""
    name, wanted = (p.rpartition("/")[2] for p in (path, expected))
    if wanted == _without_suffix(wanted):  # readers try the suffixes for a name that has none
        name = _without_suffix(name)
    if name != wanted:
        return difference(name, wanted)
    parts = zip(path.split("/"), expected.split("/"), strict=False)
    return next(filter(None, (difference(a, b) for a, b in parts if a != b)), "folder")


class _Listing:
    """The content of folders, each listed once: names, and the forms that near names share."""

    def __init__(self):
        self._names: dict[str, frozenset[str]] = {}
        self._near: dict[str, dict[str, list[str]]] = {}

    def near_in_any(self, folders: Iterable[str], name: str) -> Iterator[str]:
        """Yield the paths of files and folders with a near name in one of some folders."""
        shared = shared_form(name)
        for folder in folders:
            self._list(folder)
            for near in self._near[folder].get(shared, ()):
                if near != name:
                    yield storage.join(folder, near)

    def follow(self, root: str, path: str) -> Iterator[str]:
        """Yield the paths that equal a path or differ from it by near names only.

        Args:
            root: the folder at which the search starts.
            path: a path in this folder, whose folders and file may have near names.
        """
        root = root.rstrip("/")
        *parts, name = path.removeprefix(f"{root}/").split("/")
        folders = [root]
        for part in parts:
            folders = [
                below
                for folder in folders
                for below in (
                    [storage.join(folder, part)]
                    if part in self._list(folder)
                    else self.near_in_any([folder], part)
                )
            ]
        yield from self.near_in_any(folders, name)
        yield from (storage.join(f, name) for f in folders if name in self._list(f))

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = frozenset(storage.names(folder))
            near: dict[str, list[str]] = collections.defaultdict(list)
            for name in self._names[folder]:
                near[shared_form(name)].append(name)
            self._near[folder] = near
        return self._names[folder]
