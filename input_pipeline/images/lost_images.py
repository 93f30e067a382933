"""Where the images of a data set lie that are not in their place, and the remedy for all of them.

lost = find(records, missing, folders, read)
lost.places              # a file for each image, by id
lost.remedy(ids)         # a flag that was tried, or commands
"""

import collections
import dataclasses
import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from input_pipeline import storage
from input_pipeline.images import near_names
from input_pipeline.images.check import in_parallel, link_checker
from input_pipeline.records import Image, Records
from input_pipeline.registry import find_data_set

Reader = Callable[[str], Records]  # reads the data set with its images in another folder

_COMMANDS = 3  # that a remedy spells out
_TRIALS = 8  # folders that are tried as that of the images


@dataclasses.dataclass(frozen=True)
class Lost:
    """What was found out about images that are not in their place.

    Attributes:
        places: a file for each, by id, where there is one.
        mended: ids of the images that are found with another folder of images.
        flag: that folder as a remedy; empty where there is none.
        expected: where each image is expected, by id; with ``flag``, once that is followed.
    """

    places: Mapping[str, str]
    mended: Set[str]
    flag: str
    expected: Mapping[str, Image]

    def remedy(self, ids: Sequence[str]) -> str:
        """Return what mends some of the images: all or none of them are in ``mended``."""
        if ids[0] in self.mended:
            return self.flag
        return _put([(self.expected[i], self.places[i]) for i in ids])


def find(
    records: Records,
    missing: Sequence[Image],
    usable: Set[str],
    folders: Sequence[str],
    read: Reader,
) -> Lost:
    """Look for missing images.

    Args:
        records: the data set.
        missing: its images that are not in their place.
        usable: ids of those that are, and can be read.
        folders: where they are looked for, and all below.
        read: reads the data set with its images in another folder.
    """
    if not missing:
        return Lost({}, frozenset(), "", records.images)
    options, near = _find_files(records, missing, folders)
    places = {image.id: place for image in missing if (place := _choose(image, options[image.id]))}
    counts = _count_below(itertools.chain(near, *options.values()), folders)
    most = {folder: count + len(usable) for folder, count in counts.items()}
    best = _best_folder(most, read, near=bool(near))
    mended = {image.id: best.images[image.id].path for image in missing if image.id in best.found}
    # A folder that has other images than those found today may be worth it, if it has most.
    gain = len(best.found) - len(usable)
    if gain <= 0 or (usable - best.found and gain <= len(missing) / 2):
        return Lost(places, frozenset(), "", records.images)
    return Lost({**places, **mended}, mended.keys(), best.flag(), best.images)


def mend_links(records: Records, images: Sequence[Image], usable: Set[str], read: Reader) -> str:
    """Return a remedy for images that are links leading out of the image folder.

    Args:
        records: the data set.
        images: those that are such links, or lie below such a link.
        usable: ids of those that can be used as they are.
        read: reads the data set with its images in another folder.
    """
    root = records.image_directory
    links = collections.Counter(_link_on_the_way(root, image.path) for image in images)
    target = os.path.realpath(images[0].path)
    candidates = (
        *(link for link, _ in links.most_common(_COMMANDS) if os.path.isdir(link)),
        _bases(images[0], target)[0],
        os.path.dirname(target),
    )
    best = _best_folder(dict.fromkeys(candidates, len(records.images)), read)
    if best.found >= usable | {image.id for image in images}:
        return best.flag()
    copy = shlex.quote(f"{root.rstrip('/')}-copied")
    return (
        f"cp -rL {shlex.quote(root)} {copy}, which follows the links, and then "
        f"--config.data.image_directory={copy} (here: --images {copy})"
    )


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A folder that was tried as that of the images.

    Attributes:
        folder: that one.
        images: of the data set, by id, as read with it.
        found: ids of the images that are there.
        near: whether some are only if near names are accepted.
    """

    folder: str = ""
    images: Mapping[str, Image] = dataclasses.field(default_factory=dict)
    found: Set[str] = frozenset()
    near: bool = False

    def flag(self) -> str:
        value = shlex.quote(self.folder)
        flags, here = f"--config.data.image_directory={value}", f"--images {value}"
        if self.near:
            flags, here = f"{flags} {near_names.FLAG}", f"{here} --near-names"
        counts = f"{len(self.found):,} of {len(self.images):,} images"
        return f"{flags} (here: {here}) finds {counts}"


def _best_folder(most: Mapping[str, int], read: Reader, near: bool = False) -> _Trial:
    """Return the folder with which most images are found; of several the one furthest up.

    Args:
        most: folders to try, and how many images can be found with each at most.
        read: reads the data set with its images in a folder.
        near: try near names too, where not all are found without.
    """
    best = _Trial()
    order = sorted(most, key=lambda folder: (-most[folder], folder.count("/")))
    for folder in order[:_TRIALS]:
        if most[folder] <= len(best.found):
            break
        try:
            records = read(folder)
        except (ValueError, OSError):
            continue
        found = _exist(records)
        if len(found) > len(best.found):
            best = _Trial(folder, records.images, found)
        if near and len(found) < most[folder]:
            records = near_names.accept(records, [i for i in records.images if i not in found])
            found = _exist(records)
            if len(found) > len(best.found):
                best = _Trial(folder, records.images, found, near=True)
    return best


def _exist(records: Records) -> set[str]:
    """Return the ids of the images that are there, and lie in the folder of the images."""
    leads_out = link_checker(records.image_directory)
    places = [image.path for image in records.images.values()]
    exist = in_parallel(
        lambda place: storage.exists(place) and not leads_out(place), places, "looking", "images"
    )
    return {i for i, there in zip(records.images, exist, strict=True) if there}


def _count_below(places: Iterable[str], roots: Sequence[str]) -> dict[str, int]:
    """Return the folders at or below some roots that hold files, and how many at any depth."""
    tops = tuple(root.rstrip("/") for root in roots)
    counts: collections.Counter[str] = collections.Counter()
    for place in places:
        folder = place.rpartition("/")[0]
        while folder and folder.startswith(tops):
            counts[folder] += 1
            folder = folder.rpartition("/")[0]
    return counts


def _link_on_the_way(root: str, path: str) -> str:
    """Return the first link below a folder on the way to a file, or the file."""
    at = root.rstrip("/")
    for part in path.removeprefix(f"{at}/").split("/"):
        at = f"{at}/{part}"
        if os.path.islink(at):
            break
    return at


def _find_files(
    records: Records, missing: Sequence[Image], folders: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return files below some folders that may be missing images, and are no other's.

    Returns:
        Files with the names of missing images, by id; and other files with near names.
    """
    # Where ids have no suffix, the one that a missing image was given is a guess.
    suffixes = find_data_set(records.name).suffixes
    wanted: dict[str, list[Image]] = collections.defaultdict(list)
    for image in missing:
        name = image.path.rpartition("/")[2]
        for key in {name, *(name.rpartition(".")[0] + suffix for suffix in suffixes)}:
            wanted[key].append(image)
    shared_forms = set(map(near_names.shared_form, wanted))
    taken = {image.path for image in records.images.values()}
    found: dict[str, list[str]] = collections.defaultdict(list)
    near = []
    for folder in folders:
        for path in storage.walk(folder):
            place, name = storage.join(folder, path), path.rpartition("/")[2]
            if place in taken:
                continue
            for image in wanted.get(name, ()):
                found[image.id].append(place)
            if name not in wanted and near_names.shared_form(name) in shared_forms:
                near.append(place)
    return found, near


def _choose(image: Image, places: Sequence[str]) -> str:
    """Return the file whose folders are named most alike, or nothing where that leaves a choice."""
    scored = sorted((_alike(place, image.path), place) for place in places)[-2:]
    certain = len(scored) == 1 or (scored and scored[0][0] < scored[1][0])
    return scored[-1][1] if certain else ""


def _alike(place: str, expected: str) -> int:
    """Return how many names at the end two places share, the file's own among them."""
    pairs = zip(place.split("/")[-2::-1], expected.split("/")[-2::-1], strict=False)
    # A reader that cannot tell an image's own folder expects it in one such as ``kind_*``.
    same = (a == b or ("*" in b and a.startswith(b.rstrip("*"))) for a, b in pairs)
    return 1 + sum(itertools.takewhile(bool, same))


def _bases(image: Image, place: str) -> tuple[str, str]:
    """Return the folders below which a place and the expected one are the same."""
    count = _alike(place, image.path)
    return tuple("/".join(path.split("/")[:-count]) or "/" for path in (place, image.path))


def _put(pairs: Sequence[tuple[Image, str]]) -> str:
    """Return commands that put misplaced images in their place."""
    bases = sorted({_bases(image, place) for image, place in pairs})
    if len(bases) <= _COMMANDS and not any(
        "*" in target or f"{target}/".startswith(f"{source}/") for source, target in bases
    ):
        return "; ".join(_copy_all(source, target) for source, target in bases)
    commands = []
    for image, place in pairs[:_COMMANDS]:
        folder = shlex.quote(image.path.partition("*")[0].rpartition("/")[0])
        commands.append(f"mkdir -p {folder} && mv -n {shlex.quote(place)} {folder}/")
    more = f"; and so on for {len(pairs):,} files, see --json" if len(pairs) > _COMMANDS else ""
    return "; ".join(commands) + more


def _copy_all(source: str, target: str) -> str:
    """Return a command that puts a folder's content into another, and writes over nothing."""
    source, target = shlex.quote(source), shlex.quote(target)
    return f"mkdir -p {target} && cp -rn {source}/. {target}"
