"""Problems of the image files of a data set, and files that are the same."""

import collections
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cmap_jax.files import is_remote
from cmap_jax.processing.image_files import CMYK, FRAMES, SIXTEEN_BIT, TRANSPARENT, TURNED
from cmap_jax.processing.images import RELEASED, UPRIGHT
from input_pipeline import storage
from input_pipeline.doctor.findings import Annotation, Finding, by_split, number
from input_pipeline.images import lost_images, near_names
from input_pipeline.images.check import in_parallel
from input_pipeline.images.lost_images import Reader
from input_pipeline.records import Image, Records
from input_pipeline.registry import find_data_set

# Remedies for a damaged file: of a published data set, and of one's own.
_AGAIN = "download these files again or leave them out: no other setting mends them"
_AGAIN_OWN = "copy these files again from where they come from, or leave them out"
_ACCEPT = f"{near_names.FLAG} (here: --near-names)"

# The beginning of a reason from `check.check_images` -> kind, words of the title, remedy.
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
    # No reason begins like this: some missing images are told apart by it.
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
        reasons: why an image cannot be used, by id, from `check.check_images`.
        folders: folders that are searched for misplaced images.
        read: function that reads the data set with its images in another folder.
    """
    data_set = find_data_set(records.name)
    missing = [records.images[i] for i, reason in reasons.items() if reason == "missing"]
    usable = records.images.keys() - reasons.keys()
    lost = lost_images.find(records, missing, usable, folders=folders, read=read)
    needed = records.image_ids()
    groups: dict[tuple[bool, str, bool], list[str]] = collections.defaultdict(list)
    for i, reason in reasons.items():
        start = next(start for start in _KINDS if reason.startswith(start))
        start = "elsewhere" if i in lost.paths else start
        groups[i not in needed, start, i not in lost.mended].append(i)
    for (spare, start, _), ids in sorted(groups.items()):
        kind, state, fix = _KINDS[start]
        images = [records.images[i] for i in ids]
        items = [f"{i.path}{_detail(reasons[i.id])}" for i in images]
        if kind == "misplaced":
            items = [f"{i.path} is at {lost.paths[i.id]}" for i in images]
            fix = lost.remedy(ids)
        elif kind == "link_out":
            items = [f"{i.path} -> {os.path.realpath(i.path)}" for i in images]
            fix = lost_images.mend_links(records, images, usable, read)
        elif kind == "unsupported_format":
            fix = "; ".join(sorted({reasons[i].rpartition("; ")[2] for i in ids}))
        elif data_set.rendering is not None:
            fix = f"delete {records.image_directory}: training renders it again"
        elif fix is _AGAIN and not data_set.published:
            fix = _AGAIN_OWN
        use = ", which only submissions need" if spare else ""
        yield Finding(
            kind=kind,
            severity="warning" if spare else "error",
            title=f"{number(len(ids), 'image')} {state}{use}",
            count=len(ids),
            items=tuple(items),
            fix=fix,
        )


def near_name_findings(records: Records) -> Iterator[Finding]:
    """Yield the images that are taken from files with near names."""
    images = [records.images[i] for i in records.near_names]
    if images:
        yield Finding(
            kind="near_names_accepted",
            severity="note",
            title=f"{number(len(images), 'image')} taken from files with near names",
            count=len(images),
            items=tuple(f"{image.id}: {image.path}" for image in images),
            fix=f"give training {near_names.FLAG} too",
        )


# A trait of `image_files.TRAITS` -> words for such images, and how they are treated: one sentence,
# or one for each value of config.data.read_as.
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
    """Yield the images that are no plain pictures of 8 bits, and how they are treated.

    Args:
        records: the data set.
        traits: the ids of the images with each trait, from `check.find_traits`.
    """
    for trait, (state, treatment) in _TRAITS.items():
        if ids := traits.get(trait):
            if not isinstance(treatment, str):
                treatment = treatment[records.read_as]
            yield Finding(
                kind=trait,
                severity="note",
                title=f"{number(len(ids), 'image')} {state}",
                count=len(ids),
                items=tuple(records.images[i].path for i in ids),
                fix=f"nothing to do: {treatment}",
            )


def _detail(reason: str) -> str:
    """Return the part of a reason that its kind does not say, such as ": Permission denied"."""
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
        annotations: every annotation once, from `findings.list_annotations`.
    """
    groups = same_bytes(usable)
    if groups:
        yield Finding(
            kind="duplicate",
            severity="note",
            title=f"{number(sum(map(len, groups)), 'image')} with a copy of the same bytes, "
            f"{number(len(groups), 'group')}",
            count=len(groups),
            items=_lines(groups),
            fix="keep one of each group and name it in the annotations; in a gallery the other "
            "copies count as wrong",
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
                kind="duplicate_across",
                severity="warning",
                title=f"{number(len(across), 'group')} of images of the same bytes across train "
                f"and {split}",
                count=len(across),
                items=_lines(across),
                fix="take the copies out of the training annotations; with published data, say it "
                "beside the numbers",
            )
    group_of = {image.id: at for at, group in enumerate(groups) for image in group}
    same = [
        a
        for a in annotations
        if not a.is_paraphrase
        and any(
            reference != target and group_of.get(reference, -1) == group_of.get(target)
            for reference in a.references
            for target in a.targets
        )
    ]
    if same:
        yield Finding(
            kind="duplicate_pair",
            severity="warning",
            title=f"{number(len(same), 'annotation')} whose reference and target have the same "
            f"bytes ({by_split(same)})",
            count=len(same),
            items=tuple(map(str, same)),
            fix="remove these annotations: their text describes no difference",
        )


def same_bytes(images: Sequence[Image]) -> list[list[Image]]:
    """Return the groups of images whose files hold the same bytes, in the order given.

    Only files of equal size are compared. In a bucket a file's size costs as much as its content,
    so all files are read there.
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


def _size(path: str) -> int:
    return 0 if is_remote(path) else os.path.getsize(path)


def _digest(path: str) -> bytes:
    with storage.open_file(path) as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()


def _lines(groups: Iterable[Sequence[Image]]) -> tuple[str, ...]:
    return tuple(" = ".join(image.path for image in group) for group in groups)
