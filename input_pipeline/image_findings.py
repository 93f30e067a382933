"""What is wrong with the image files of a data set, where lost ones lie, and which are the same."""

import collections
import hashlib
import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from cmap_jax.processing.image_files import CMYK, FRAMES, SIXTEEN_BIT, TRANSPARENT, TURNED
from cmap_jax.processing.images import RELEASED, UPRIGHT
from input_pipeline import storage
from input_pipeline.findings import Annotation, Finding, by_split, number
from input_pipeline.image_check import in_parallel
from input_pipeline.records import Image, Records

_AGAIN = "download these files again or leave them out: no other setting mends them"

# How a reason of `image_check.check_images` begins -> kind, words of the title, remedy.
_KINDS = {
    "missing: a link": ("broken_link", "that are links to nothing", "restore what they point to"),
    "missing": (
        "missing",
        "missing",
        "put the files there, or name the folder that has them: "
        "--config.data.image_directory=DIR (here: --images DIR)",
    ),
    # Not a reason, but said of some that are missing.
    "elsewhere": ("misplaced", "missing, with files of their names elsewhere", ""),
    "zero bytes": ("zero_bytes", "of zero bytes", _AGAIN),
    "truncated": ("truncated", "truncated", _AGAIN),
    "not an image": ("not_an_image", "that are no image files", _AGAIN),
    "too large": ("too_large", "too large", "shrink these files or leave them out"),
    # The reasons name the packages that read these formats.
    "unsupported format": ("unsupported_format", "in a format that cannot be read here", ""),
    "unsupported pixels": (
        "unsupported_pixels",
        "of pixels that cannot be read",
        "save them with 8 or 16 bits a channel, scaled to what they should look like",
    ),
    "a link that leads out": (
        "link_out",
        "that are links leading out of the image folder",
        "put the files in the place of the links: cp --remove-destination FILE LINK",
    ),
    "not a file": (
        "not_a_file",
        "that are no files",
        "put the files in the place of what is there",
    ),
    "unreadable": ("unreadable", "not readable", "make them readable: chmod u+r FILE"),
}
_MOVES = 3  # commands that a remedy spells out
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")  # that FashionIQ's reader takes

_Reader = Callable[[str], Records]  # reads the data set with its images in another folder
_Pairs = Sequence[tuple[Image, str]]  # images not in their place, and where they are


def image_findings(
    records: Records, reasons: Mapping[str, str], folders: Iterable[str], read: _Reader
) -> Iterator[Finding]:
    """Yield the unusable images by kind: those that training and evaluation need, then the others.

    Args:
        records: the data set.
        reasons: why an image cannot be used, by id, from `image_check.check_images`.
        folders: where images that are not in their place are looked for.
        read: reads the data set with its images in another folder.
    """
    missing = [records.images[i] for i, reason in reasons.items() if reason == "missing"]
    elsewhere = _find_elsewhere(records, missing, folders) if missing else {}
    present = len(records.images) - len(missing)
    needed = records.image_ids()
    groups: dict[tuple[bool, str], list[str]] = collections.defaultdict(list)
    for i, reason in reasons.items():
        start = next(start for start in _KINDS if reason.startswith(start))
        groups[i not in needed, "elsewhere" if i in elsewhere else start].append(i)
    for (spare, start), ids in sorted(groups.items()):
        images = [records.images[i] for i in ids]
        kind, what, fix = _KINDS[start]
        items = [f"{i.path}{_detail(reasons[i.id])}" for i in images]
        if kind == "misplaced":
            pairs = [(image, elsewhere[image.id]) for image in images]
            items = [f"{image.path} is at {place}" for image, place in pairs]
            fix = _image_directory(pairs, present + len(pairs), read) or _put(pairs)
        elif kind == "link_out":
            pairs = [(image, os.path.realpath(image.path)) for image in images]
            items = [f"{image.path} -> {place}" for image, place in pairs]
            fix = _image_directory(pairs, present, read) or fix
        elif kind == "unsupported_format":
            fix = "; ".join(sorted({reasons[i].rpartition("; ")[2] for i in ids}))
        elif records.name == "garments":
            fix = f"delete {records.image_directory}: training renders it again"
        yield Finding(
            kind,
            "warning" if spare else "error",
            f"{number(len(ids), 'image')} {what}{', which only submissions need' if spare else ''}",
            len(ids),
            tuple(items),
            fix,
        )


# A trait of `image_files.TRAITS` -> what such images are, and what is done with them by the way
# they are read, or in both.
_BY_UPRIGHT, _BY_RELEASED = (f"config.data.read_as is {way}" for way in (UPRIGHT, RELEASED))
_LIKE_A_PERSON = f"--config.data.read_as={UPRIGHT} reads them as a person sees them"
_TRAITS = {
    TURNED: (
        "that EXIF says to turn",
        {
            UPRIGHT: f"they are turned upright ({_BY_UPRIGHT})",
            RELEASED: f"they are left lying, as in published protocols ({_BY_RELEASED}); "
            + _LIKE_A_PERSON,
        },
    ),
    TRANSPARENT: (
        "with transparent parts",
        {
            UPRIGHT: f"they are laid on white, the colour of the padding ({_BY_UPRIGHT})",
            RELEASED: "alpha is dropped, as in published protocols, and what it hides is seen, "
            f"often black ({_BY_RELEASED}); {_LIKE_A_PERSON}",
        },
    ),
    SIXTEEN_BIT: ("of 16 bits a channel", "they are scaled to 8 bits"),
    CMYK: ("in CMYK", "they are converted to RGB by PIL's formula, without a colour profile"),
    FRAMES: ("animated or of several pages", "the first frame or page is read"),
}


def trait_findings(records: Records, traits: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield the images that are no plain pictures of 8 bits, and what is done with them.

    Args:
        records: the data set.
        traits: the ids of the images with each trait, from `image_check.find_traits`.
    """
    for trait, (what, done) in _TRAITS.items():
        if ids := traits.get(trait):
            done = done if isinstance(done, str) else done[records.read_as]
            title = f"{number(len(ids), 'image')} {what}"
            places = tuple(records.images[i].path for i in ids)
            yield Finding(trait, "note", title, len(ids), places, f"nothing to do: {done}")


def _detail(reason: str) -> str:
    """Return what a reason says beyond its kind, such as ": Permission denied"."""
    kind, colon, detail = reason.partition(": ")
    return colon + detail if kind != "missing" else ""


def _find_elsewhere(
    records: Records, missing: Sequence[Image], folders: Iterable[str]
) -> dict[str, str]:
    """Return files below some folders that have the names of missing images, by id.

    Of several the one is taken whose folders are named most alike; none where that leaves a choice,
    and none that is another image's.
    """
    # There ids have no suffix, and the one that a missing image was given is a guess.
    suffixes = _SUFFIXES if records.name == "fashion_iq" else ()
    wanted: dict[str, list[Image]] = collections.defaultdict(list)
    for image in missing:
        name = image.path.rpartition("/")[2]
        for key in {name, *(name.rpartition(".")[0] + suffix for suffix in suffixes)}:
            wanted[key].append(image)
    taken = {image.path for image in records.images.values()}
    found: dict[str, list[str]] = collections.defaultdict(list)
    for folder in folders:
        for path in storage.walk(folder):
            place = storage.join(folder, path)
            for image in wanted.get(path.rpartition("/")[2], ()):
                if place not in taken:
                    found[image.id].append(place)
    places = {}
    for image in missing:
        scored = sorted((_alike(place, image.path), place) for place in found[image.id])[-2:]
        if len(scored) == 1 or (scored and scored[0][0] < scored[1][0]):
            places[image.id] = scored[-1][1]
    return places


def _alike(place: str, expected: str) -> int:
    """Return how many names at the end two places share, the file's own among them."""
    pairs = zip(place.split("/")[-2::-1], expected.split("/")[-2::-1], strict=False)
    # Shoes' reader expects a lost image in womens_*/*.
    same = (a == b or ("*" in b and a.startswith(b.rstrip("*"))) for a, b in pairs)
    return 1 + sum(itertools.takewhile(bool, same))


def _bases(image: Image, place: str) -> tuple[str, str]:
    """Return the folders below which a place and the expected one are the same."""
    count = _alike(place, image.path)
    return tuple("/".join(path.split("/")[:-count]) or "/" for path in (place, image.path))


def _image_directory(pairs: _Pairs, least: int, read: _Reader) -> str:
    """Return the flag with which at least so many images are found where some lie, or nothing."""
    image, place = pairs[0]
    for folder in dict.fromkeys((_bases(image, place)[0], place.rpartition("/")[0])):
        try:
            places = [image.path for image in read(folder).images.values()]
        except (ValueError, OSError):
            continue
        there = sum(in_parallel(storage.exists, places, "looking", "images"))
        if there >= least:
            value = shlex.quote(folder)
            return (
                f"--config.data.image_directory={value} (here: --images {value}) finds {there:,} "
                f"of {len(places):,} images"
            )
    return ""


def _put(pairs: _Pairs) -> str:
    """Return commands that put misplaced images in their place."""
    bases = {_bases(image, place) for image, place in pairs}
    source, target = next(iter(bases))
    if len(bases) == 1 and "*" not in target and not f"{target}/".startswith(f"{source}/"):
        source, target = shlex.quote(source), shlex.quote(target)
        return f"mkdir -p {target} && cp -rn {source}/. {target}"  # writes over nothing
    commands = []
    for image, place in pairs[:_MOVES]:
        folder = shlex.quote(image.path.partition("*")[0].rpartition("/")[0])
        commands.append(f"mkdir -p {folder} && mv -n {shlex.quote(place)} {folder}/")
    more = f"; and so on for {len(pairs):,} files, see --json" if len(pairs) > _MOVES else ""
    return "; ".join(commands) + more


def duplicate_findings(
    records: Records, usable: Sequence[Image], annotations: Sequence[Annotation]
) -> Iterator[Finding]:
    """Yield images of the same bytes: all; those across train and evaluation; of one annotation.

    Args:
        records: the data set.
        usable: the images whose files can be read.
        annotations: all of it.
    """
    groups = _same_bytes(usable)
    if groups:
        yield Finding(
            "duplicate",
            "note",
            f"{number(sum(map(len, groups)), 'image')} with a copy of the same bytes, "
            f"{number(len(groups), 'group')}",
            len(groups),
            _lines(groups),
            "keep one of each group and name it in the annotations; in a gallery the other copies "
            "count as wrong",
        )
    train = set(records.train.image_ids())
    for split, evaluations in records.evaluations.items():
        asked = {i for evaluation in evaluations for i in evaluation.image_ids()}
        across = []
        for group in groups:
            ids = {image.id for image in group}
            if ids & train and ids & asked and len(ids & (train | asked)) > 1:
                across.append(group)
        if across:
            yield Finding(
                "duplicate_across",
                "warning",
                f"{number(len(across), 'group')} of images of the same bytes across train and "
                f"{split}",
                len(across),
                _lines(across),
                "take the copies out of the training annotations; with published data, say it "
                "beside the numbers",
            )
    group_of = {image.id: at for at, group in enumerate(groups) for image in group}
    same = [
        a
        for a in annotations
        if any(
            a.reference != target and group_of.get(a.reference, -1) == group_of.get(target)
            for target in a.targets
        )
    ]
    if same:
        yield Finding(
            "duplicate_pair",
            "warning",
            f"{number(len(same), 'annotation')} whose reference and target have the same bytes "
            f"({by_split(same)})",
            len(same),
            tuple(map(str, same)),
            "remove these annotations: their text describes no difference",
        )


def _same_bytes(images: Sequence[Image]) -> list[list[Image]]:
    """Return the groups of images whose files are the same; files of a size of their own are not.

    A remote file's size costs as much as its content, so there all are read.
    """
    sizes = in_parallel(_size, [i.path for i in images], "sizing", "images")
    by_size = _grouped(zip(sizes, images, strict=True))
    candidates = [image for group in by_size for image in group]
    contents = in_parallel(_digest, [i.path for i in candidates], "comparing", "images")
    return _grouped(zip(contents, candidates, strict=True))


def _grouped(keyed: Iterable[tuple[object, Image]]) -> list[list[Image]]:
    """Return the images that share their key with another."""
    groups: dict[object, list[Image]] = collections.defaultdict(list)
    for key, image in keyed:
        groups[key].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _size(place: str) -> int:
    return 0 if storage.is_remote(place) else os.path.getsize(place)


def _digest(place: str) -> bytes:
    with storage.open_file(place) as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()


def _lines(groups: Iterable[Sequence[Image]]) -> tuple[str, ...]:
    return tuple(" = ".join(image.path for image in group) for group in groups)
