"""Files whose names are those of missing images, but for the way in which they are written.

Folders pass through file systems, archives and spreadsheets, and each may rewrite a name: its
Unicode form, letter case, extension, leading zeros, percent-encoding, or spaces around it.

    near = find(records, missing)         # which files these are, for messages
    records = accept(records, missing)    # and with these files in the place of the missing ones
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

# How the reasons of such images begin.
CERTAIN, UNCERTAIN = "missing, but there is", "missing; uncertain near names"
FLAG = "--config.data.near_names=accept"

_SUFFIXES = (*IMAGE_SUFFIXES, ".jpe", ".jfif", ".heic", ".heif", ".avif")
_SHOWN = 3  # near names in a reason


def _without_suffix(name: str) -> str:
    """Return a name without its suffix, or both where a program added one: ``1.png.jpg``."""
    stem, dot, suffix = name.rpartition(".")
    return _without_suffix(stem) if stem and dot + suffix.lower() in _SUFFIXES else name


def _without_outer_spaces(name: str) -> str:
    """Return a name without spaces around it and around what stands before its suffix."""
    stem = _without_suffix(name.strip())
    return stem.strip() + name.strip()[len(stem) :]


# How one name becomes another, and what undoes it; applied in this order.
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
        places: the files.
        names: of the files; with their folders where these are not the image's.
        certain: whether there is only one, and it can be no other image's.
        difference: how the first one's name differs, such as "letter case".
    """

    places: tuple[str, ...]
    names: tuple[str, ...]
    certain: bool
    difference: str

    def reason(self) -> str:
        """Return why the image cannot be used; see `image_check.check_images`."""
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

    A file is looked for in the folder where its image is expected, whose own name may be a near one
    too; and, where the image is named without a folder, in all that the reader searches.

    Args:
        records: the data set.
        missing: image ids.
    """
    listing = _Listing()
    candidates: dict[str, tuple[str, ...]] = {}
    for i in missing:
        image = records.images[i]
        found = set(listing.follow(records.image_directory, image.path))
        if "/" not in i:
            found |= set(listing.near_in_any(records.searched, image.path.rpartition("/")[2]))
        if places := sorted(place for place in found if not _is_folder(place)):
            candidates[i] = tuple(places)
    if not candidates:
        return {}
    claims = collections.Counter(itertools.chain(*candidates.values()))
    claims.update(image.path for image in records.images.values())
    return {
        i: Near(
            places,
            tuple(
                _shown(place, records.images[i].path, records.image_directory) for place in places
            ),
            certain=len(places) == 1 and claims[places[0]] == 1,
            difference=_difference_of_files(places[0], records.images[i].path),
        )
        for i, places in candidates.items()
    }


def accept(records: Records, missing: Iterable[str]) -> Records:
    """Return the records with near names taken for missing images, where these are certain.

    Args:
        records: the data set.
        missing: image ids.
    """
    near = find(records, missing)
    found = {i: Image(i, n.places[0]) for i, n in near.items() if n.certain}
    return dataclasses.replace(
        records.with_images({**records.images, **found}), near_names=tuple(found)
    )


def shared_form(name: str) -> str:
    """Return what a name and all that are near to it have in common."""
    return _undo(name, _FORMS)


def _undo(name: str, forms: Sequence[tuple[str, Callable[[str], str]]]) -> str:
    """Return a name with some kinds of difference taken out of it."""
    return functools.reduce(lambda text, form: form[1](text), forms, name)


def _is_folder(place: str) -> bool:
    """Tell whether there is a folder; one that is called like an image is not expected."""
    name = place.rpartition("/")[2]
    return name == _without_suffix(name) and storage.is_folder(place)


def _shown(place: str, expected: str, root: str) -> str:
    """Return a file's name; with its folders where these are not the expected one."""
    folder, _, name = place.rpartition("/")
    same = folder == expected.rpartition("/")[0]
    return name if same else place.removeprefix(f"{root.rstrip('/')}/")


def _difference_of_files(place: str, expected: str) -> str:
    """Return how a file's name differs, or else that of a folder on the way to it."""
    name, wanted = (path.rpartition("/")[2] for path in (place, expected))
    if wanted == _without_suffix(wanted):  # readers try the suffixes for a name that has none
        name = _without_suffix(name)
    if name != wanted:
        return difference(name, wanted)
    parts = zip(place.split("/"), expected.split("/"), strict=False)
    return next(filter(None, (difference(a, b) for a, b in parts if a != b)), "folder")


class _Listing:
    """What is in folders, each listed once, by name and by what near names share."""

    def __init__(self):
        self._names: dict[str, frozenset[str]] = {}
        self._near: dict[str, dict[str, list[str]]] = {}

    def near_in_any(self, folders: Iterable[str], name: str) -> Iterator[str]:
        """Yield what has a near name in one of some folders."""
        shared = shared_form(name)
        for folder in folders:
            self._list(folder)
            for found in self._near[folder].get(shared, ()):
                if found != name:
                    yield storage.join(folder, found)

    def follow(self, root: str, path: str) -> Iterator[str]:
        """Yield what has a path's name or a near one, in folders with its names or near ones."""
        root = root.rstrip("/")
        *folders, name = path.removeprefix(f"{root}/").split("/")
        places = [root]
        for part in folders:
            places = [
                below
                for place in places
                for below in (
                    [storage.join(place, part)]
                    if part in self._list(place)
                    else self.near_in_any([place], part)
                )
            ]
        yield from self.near_in_any(places, name)
        yield from (storage.join(place, name) for place in places if name in self._list(place))

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = frozenset(storage.names(folder))
            near: dict[str, list[str]] = collections.defaultdict(list)
            for name in self._names[folder]:
                near[shared_form(name)].append(name)
            self._near[folder] = near
        return self._names[folder]
