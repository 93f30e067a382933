"""What is wrong with the image files of a data set, where lost ones lie, and which are the same."""

import collections
import hashlib
import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from input_pipeline import storage
from input_pipeline.annotations import IMAGE_SUFFIXES
from input_pipeline.findings import Annotation, Finding, number
from input_pipeline.image_check import in_parallel
from input_pipeline.records import Image, Records

_AGAIN = "download these files again: no setting mends them"

# How a reason of `image_check.check_images` begins -> kind, words of the title, remedy.
_KINDS = {
    "missing: a link": ("broken_link", "links to nothing", "restore what the links point to"),
    "missing": ("missing", "missing", ""),
    "zero bytes": ("zero_bytes", "of zero bytes", _AGAIN),
    "truncated": ("truncated", "truncated", _AGAIN),
    "not an image": (
        "not_an_image",
        "that are no image files",
        f"{_AGAIN} (a web page saved in an image's place begins with <)",
    ),
    "too large": ("too_large", "too large", "shrink these files"),
    "a link that leads out": ("link_out", "links that lead out of the image folder", ""),
    "not a file": ("not_a_file", "that are folders", "put the files in the folders' place"),
    "unreadable": ("unreadable", "not readable", "make them readable: chmod u+r FILE"),
}

_Read = Callable[[str], Records]  # the data set with its images in another folder


def image_findings(
    records: Records, reasons: Mapping[str, str], folders: Sequence[str], read: _Read | None
) -> Iterator[Finding]:
    """Yield the unusable images by kind: first those that training and evaluation need.

    Args:
        records: the data set.
        reasons: why an image cannot be used, by id, from `image_check.check_images`.
        folders: where images that are not in their place are looked for.
        read: reads the data set with its images in another folder; None where it cannot.
    """
    needed = records.image_ids()
    kinds: dict[tuple[str, bool], list[Image]] = collections.defaultdict(list)
    for image, reason in reasons.items():
        start = next(start for start in _KINDS if reason.startswith(start))
        kinds[start, image in needed].append(records.images[image])
    found = _find_elsewhere(records, [i for (s, _), x in kinds.items() if s == "missing" for i in x], folders)
    places = {i: found.get(i) for i in reasons}
    ...
