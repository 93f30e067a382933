"""Images that are not where they are expected: files that may be theirs, and a remedy for all.

lost = find(records, missing, usable, folders, read)
lost.paths               # a file for each image, by id
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

_COMMANDS = 3  # commands that a remedy spells out
_TRIALS = 8  # folders that are tried as the folder of the images


@dataclasses.dataclass(frozen=True)
class Lost:
    """The result of a search for images that are not where they are expected.

    Attributes:
        paths: a file for each image, by id, where there is one.
        mended: ids of the images that are found with another folder of images.
        flag: the flag that names this folder, as a remedy; empty where there is none.
        expected: the path at which each image is expected, by id; where there is a ``flag``, the
            path once it is given.
    """

    paths: Mapping[str, str]
    mended: Set[str]
    flag: str
    expected: Mapping[str, Image]

    def remedy(self, ids: Sequence[str]) -> str:
        """Return a flag or commands that mend some of the images.

        Args:
            ids: ids of the images, of which all or none are in ``mended``.
        """
        if ids[0] in self.mended:
            return self.flag
        return _put([(self.expected[i], self.paths[i]) for i in ids])


def find(
    records: Records,
    missing: Sequence[Image],
    usable: Set[str],
    folders: Sequence[str],
    read: Reader,
) -> Lost:
    """Search for missing images.

    Args:
        records: the data set.
        missing: its images that are not where they are expected.
        usable: ids of its images that are there and can be read.
        folders: folders that are searched, with all folders below.
        read: function that reads the data set with its images in another folder.
    """
    if not missing:
        return Lost({}, frozenset(), "", records.images)
    options, near = _find_files(records, missing, folders)
    paths = {image.id: path for image in missing if (path := _choose(image, options[image.id]))}
    counts = _count_below(itertools.chain(near, *options.values()), folders)
    most = {folder: count + len(usable) for folder, count in counts.items()}
    best = _best_folder(most, read, near=bool(near))
    mended = {image.id: best.images[image.id].path for image in missing if image.id in best.present}
    # A folder without some of the usable images is suggested only if it has most missing ones.
    gain = len(best.present) - len(usable)
    if gain <= 0 or (usable - best.present and gain <= len(missing) / 2):
        return Lost(paths, frozenset(), "", records.images)
    return Lost({**paths, **mended}, mended.keys(), best.flag(), best.images)


def mend_links(records: Records, images: Sequence[Image], usable: Set[str], read: Reader) -> str:
    """Return a remedy for images that are links leading out of the image folder.

    Args:
        records: the data set.
        images: images that are such links, or lie below such a link.
        usable: ids of the images that can be used as they are.
        read: function that reads the data set with its images in another folder.
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
    if best.present >= usable | {image.id for image in images}:
        return best.flag()
    copy = shlex.quote(f"{root.rstrip('/')}-copied")
    return (
        f"cp -rL {shlex.quote(root)} {copy}, which follows the links, and then "
        f"--config.data.image_directory={copy} (here: --images {copy})"
    )


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A folder that was tried as the folder of the images.

    Attributes:
        folder: path of the folder.
        images: images of the data set as read with this folder, by id.
        present: ids of the images that are there.
        near: whether some are there only if near names are accepted.
    """

    folder: str = ""
    images: Mapping[str, Image] = dataclasses.field(default_factory=dict)
    present: Set[str] = frozenset()
    near: bool = False

    def flag(self) -> str:
        value = shlex.quote(self.folder)
        flags, here = f"--config.data.image_directory={value}", f"--images {value}"
        if self.near:
            flags, here = f"{flags} {near_names.FLAG}", f"{here} --near-names"
        counts = f"{len(self.present):,} of {len(self.images):,} images"
        return f"{flags} (here: {here}) finds {counts}"


def _best_folder(most: Mapping[str, int], read: Reader, near: bool = False) -> _Trial:
    """Return the folder with which most images are found; among equals the one furthest up.

    Args:
        most: folders to try, each with the number of images that it can have at most.
        read: function that reads the data set with its images in a folder.
        near: whether to try near names as well where images are missing.
    """
    best = _Trial()
    order = sorted(most, key=lambda folder: (-most[folder], folder.count("/")))
    for folder in order[:_TRIALS]:
        if most[folder] <= len(best.present):
            break
        try:
            records = read(folder)
        except (ValueError, OSError):
            continue
        there = _exist(records)
        if len(there) > len(best.present):
            best = _Trial(folder, records.images, there)
        if near and len(there) < most[folder]:
            records = near_names.accept(records, [i for i in records.images if i not in there])
            there = _exist(records)
            if len(there) > len(best.present):
                best = _Trial(folder, records.images, there, near=True)
    return best


def _exist(records: Records) -> set[str]:
    """Return the ids of the images that are there, and lie in the folder of the images."""
    leads_out = link_checker(records.image_directory)
    paths = [image.path for image in records.images.values()]
    exist = in_parallel(
        lambda path: storage.exists(path) and not leads_out(path), paths, "looking", "images"
    )
    return {i for i, there in zip(records.images, exist, strict=True) if there}


def _count_below(paths: Iterable[str], roots: Sequence[str]) -> dict[str, int]:
    """Return the number of files below each folder, for the folders at or below some roots."""
    tops = tuple(root.rstrip("/") for root in roots)
    counts: collections.Counter[str] = collections.Counter()
    for path in paths:
        folder = path.rpartition("/")[0]
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
    """Return files below some folders that may be missing images, and are no other image's.

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
    options: dict[str, list[str]] = collections.defaultdict(list)
    near = []
    for folder in folders:
        for relative in storage.walk(folder):
            path, name = storage.join(folder, relative), relative.rpartition("/")[2]
            if path in taken:
                continue
            for image in wanted.get(name, ()):
                options[image.id].append(path)
            if name not in wanted and near_names.shared_form(name) in shared_forms:
                near.append(path)
    return options, near


def _choose(image: Image, paths: Sequence[str]) -> str:
    """Return the file whose folders have the most similar names, or "" where two are equal."""
    scored = sorted((_alike(path, image.path), path) for path in paths)[-2:]
    certain = len(scored) == 1 or (scored and scored[0][0] < scored[1][0])
    return scored[-1][1] if certain else ""


def _alike(path: str, expected: str) -> int:
    """Return how many names at the end two paths share, the file's own among them."""
    pairs = zip(path.split("/")[-2::-1], expected.split("/")[-2::-1], strict=False)
    # A reader that cannot tell an image's own folder expects it in one such as ``kind_*``.
    same = (a == b or ("*" in b and a.startswith(b.rstrip("*"))) for a, b in pairs)
    return 1 + sum(itertools.takewhile(bool, same))


def _bases(image: Image, actual: str) -> tuple[str, str]:
    """Return the folders below which an image's actual and expected path are the same."""
    count = _alike(actual, image.path)
    return tuple("/".join(path.split("/")[:-count]) or "/" for path in (actual, image.path))


def _put(pairs: Sequence[tuple[Image, str]]) -> str:
    """Return commands that move or copy misplaced images to where they are expected."""
    bases = sorted({_bases(image, path) for image, path in pairs})
    if len(bases) <= _COMMANDS and not any(
        "*" in target or f"{target}/".startswith(f"{source}/") for source, target in bases
    ):
        return "; ".join(_copy_all(source, target) for source, target in bases)
    commands = []
    for image, path in pairs[:_COMMANDS]:
        folder = shlex.quote(image.path.partition("*")[0].rpartition("/")[0])
        commands.append(f"mkdir -p {folder} && mv -n {shlex.quote(path)} {folder}/")
    more = f"; and so on for {len(pairs):,} files, see --json" if len(pairs) > _COMMANDS else ""
    return "; ".join(commands) + more


def _copy_all(source: str, target: str) -> str:
    """Return a command that copies a folder's content into another, and overwrites nothing."""
    source, target = shlex.quote(source), shlex.quote(target)
    return f"mkdir -p {target} && cp -rn {source}/. {target}"
