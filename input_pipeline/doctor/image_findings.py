"""What is wrong with the image files of a data set, and which are the same."""

import collections
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cmap_jax.processing.image_files import CMYK, FRAMES, SIXTEEN_BIT, TRANSPARENT, TURNED
from cmap_jax.processing.images import RELEASED, UPRIGHT
from input_pipeline import storage
from input_pipeline.doctor.findings import Annotation, Finding, by_split, number
from input_pipeline.images import lost_images, near_names
from input_pipeline.images.check import in_parallel
from input_pipeline.images.lost_images import Reader
from input_pipeline.records import Image, Records

_AGAIN = "download these files again or leave them out: no other setting mends them"
_AGAIN_OWN = "copy these files again from where they come from, or leave them out"
_ACCEPT = f"{near_names.FLAG} (here: --near-names)"

# How a reason of `image_check.check_images` begins -> kind, words of the title, remedy.
_KINDS = {
    "missing: a link": ("broken_link", "that are links to nothing", "restore what they point to"),
    near_names.CERTAIN: (
        "near_name",
        "missing, though files with near names are there",
        f"{_ACCEPT} takes these files for all of them",
    ),
    near_names.UNCERTAIN: (
        "uncertain_name",
        "missing, with near names that are uncertain",
        "name the right file in the annotations, or give it the name that they have",
    ),
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
    "a link that leads out": ("link_out", "that are links leading out of the image folder", ""),
    "not a file": (
        "not_a_file",
        "that are no files",
        "put the files in the place of what is there",
    ),
    "unreadable": ("unreadable", "not readable", "make them readable: chmod u+r FILE"),
}


def image_findings(
    records: Records, reasons: Mapping[str, str], folders: Sequence[str], read: Reader
) -> Iterator[Finding]:
    """Yield the unusable images by kind: those that training and evaluation need, then the others.

    Args:
        records: the data set.
        reasons: why an image cannot be used, by id, from `image_check.check_images`.
        folders: where images that are not in their place are looked for.
        read: reads the data set with its images in another folder.
    """
    missing = [records.images[i] for i, reason in reasons.items() if reason == "missing"]
    usable = records.images.keys() - reasons.keys()
    lost = lost_images.find(records, missing, usable, folders, read)
    needed = records.image_ids()
    groups: dict[tuple[bool, str, bool], list[str]] = collections.defaultdict(list)
    for i, reason in reasons.items():
        start = next(start for start in _KINDS if reason.startswith(start))
        start = "elsewhere" if i in lost.places else start
        groups[i not in needed, start, i not in lost.mended].append(i)
    for (spare, start, _), ids in sorted(groups.items()):
        kind, what, fix = _KINDS[start]
        images = [records.images[i] for i in ids]
        items = [f"{i.path}{_detail(reasons[i.id])}" for i in images]
        if kind == "misplaced":
            items = [f"{i.path} is at {lost.places[i.id]}" for i in images]
            fix = lost.remedy(ids)
        elif kind == "link_out":
            items = [f"{i.path} -> {os.path.realpath(i.path)}" for i in images]
            fix = lost_images.mend_links(records, images, usable, read)
        elif kind == "unsupported_format":
            fix = "; ".join(sorted({reasons[i].rpartition("; ")[2] for i in ids}))
        elif records.name == "garments":
            fix = f"delete {records.image_directory}: training renders it again"
        elif records.name == "folder" and fix is _AGAIN:
            fix = _AGAIN_OWN
        yield Finding(
            kind,
            "warning" if spare else "error",
            f"{number(len(ids), 'image')} {what}{', which only submissions need' if spare else ''}",
            len(ids),
            tuple(items),
            fix,
        )


def near_name_findings(records: Records) -> Iterator[Finding]:
    """Yield the images whose files have near names, where these were accepted."""
    images = [records.images[i] for i in records.near_names]
    if images:
        yield Finding(
            "near_names_accepted",
            "note",
            f"{number(len(images), 'image')} taken from files with near names",
            len(images),
            tuple(f"{image.id}: {image.path}" for image in images),
            f"give training {near_names.FLAG} too",
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
    if reason.startswith((near_names.CERTAIN, near_names.UNCERTAIN)):
        return f": {reason}"
    kind, colon, detail = reason.partition(": ")
    return colon + detail if kind != "missing" else ""


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
