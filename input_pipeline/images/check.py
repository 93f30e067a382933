"""The check of every image file before long work starts: for training, and for `cmap doctor`."""

import collections
import concurrent.futures
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmap_jax.files import is_remote
from cmap_jax.progress import track
from input_pipeline import digests, storage
from input_pipeline.images import near_names
from input_pipeline.records import DataError, Records

_logger = logging.getLogger(__name__)

# Threads. For a bucket the time is mostly spent waiting. For local files the threads compete for
# the interpreter: with the files in memory, 16 threads take three times as long as one.
_WORKERS, _WORKERS_IN_BUCKET = 4, 16
_CHUNK = 64  # files that a thread takes at once
_SHOWN = 5  # examples in a message


def check_images(records: Records, ids: Iterable[str] | None = None) -> dict[str, str]:
    """Check image files; return the reason of each that cannot be used, by image id.

    A link that leads out of the image folder is refused. For a missing image the reason shows a
    file with a near name, where there is one. The images of a prepared data set are not checked
    again.

    Args:
        records: the data set.
        ids: ids of the images to check; None: all that the records hold.
    """
    if records.prepared is not None:
        return {}
    ids = tuple(records.images if ids is None else ids)
    looked = _look_at(records, ids, with_digests=False)
    return _reasons(records, {i: reason for i, (reason, _) in looked.items()})


def find_traits(records: Records, ids: Iterable[str]) -> dict[str, list[str]]:
    """Return the ids of the images with each trait of `image_files.TRAITS` that occurs, by trait.

    Args:
        records: the data set.
        ids: ids of images that can be used.
    """
    ids = tuple(ids)
    with_trait: dict[str, list[str]] = collections.defaultdict(list)
    paths = [records.images[i].path for i in ids]
    for i, traits in zip(
        ids, in_parallel(storage.image_traits, paths, "describing", "images"), strict=True
    ):
        for trait in traits:
            with_trait[trait].append(i)
    return with_trait


def in_parallel(
    function: Callable[[str], Any], paths: Sequence[str], activity: str, unit: str
) -> Iterator[Any]:
    """Yield the results of a function for each path, in order, with progress.

    Args:
        function: the work on one path; several threads call it.
        paths: local paths, or paths in one bucket.
        activity: verb for the progress line, such as "checking".
        unit: noun for the things counted there, such as "images".
    """
    # Handing out files one by one takes as long as checking a small one.
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    remote = any(is_remote(path) for path in paths[:1])
    workers = _WORKERS_IN_BUCKET if remote else _WORKERS
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            results = pool.map(lambda chunk: [function(path) for path in chunk], chunks)
            flat = itertools.chain.from_iterable(results)
            yield from track(flat, len(paths), activity, unit)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for all the rest


class Usable(NamedTuple):
    """A data set without its unusable images.

    Attributes:
        records: the data set.
        skipped: ids of the images that were left out.
        digest: of the bytes of all others, see `digests.of_images`; None: prepared without one.
    """

    records: Records
    skipped: tuple[str, ...]
    digest: str | None


def leave_out_unusable(records: Records, policy: str) -> Usable:
    """Return the records without unusable images, the ids of these, and the others' digest.

    Args:
        records: the data set.
        policy: "fail" or "skip", the value of ``config.data.missing_images``.

    Raises:
        DataError: there are some, or were when the data were prepared, and the policy is "fail"; or
            there are no others.
    """
    if records.skipped_images and policy == "fail":
        raise DataError(
            f"{records.image_directory}: prepared without {len(records.skipped_images)} images "
            f"that were unusable, such as {', '.join(records.skipped_images[:_SHOWN])}. Accept "
            "that with --config.data.missing_images=skip, or prepare it from complete data"
        )
    if records.prepared is not None:
        return Usable(records, records.skipped_images, records.prepared.digest)
    looked = _look_at(records, tuple(records.images), with_digests=True)
    reasons = _reasons(records, {i: reason for i, (reason, _) in looked.items()})
    usable = {i: digest for i, (reason, digest) in looked.items() if reason is None}
    if not reasons:
        return Usable(records, records.skipped_images, digests.of_images(usable))
    summary = describe_unusable(records, reasons)
    if policy == "fail" or len(reasons) == len(records.images):
        remedy = "Restore them, set --config.data.image_directory to the folder with the images"
        if policy == "fail":
            remedy += ", or leave these out with --config.data.missing_images=skip"
        raise DataError(
            f"{summary}\n{remedy}. All that is wrong: cmap doctor {records.name} DIRECTORY"
        )
    _logger.warning("%s\nThey are left out, and counted in the results.", summary)
    return Usable(records.without(set(reasons)), tuple(sorted(reasons)), digests.of_images(usable))


def describe_unusable(
    records: Records, reasons: Mapping[str, str], near_flag: str = near_names.FLAG
) -> str:
    """Return how many of the images cannot be used, and some of them with their reasons.

    Args:
        records: the data set.
        reasons: why an image cannot be used, by id, from `check_images`.
        near_flag: the flag by which the command at hand accepts near names.
    """
    near = [i for i, reason in reasons.items() if reason.startswith(near_names.CERTAIN)]
    # Images with near names come first, as they are the easiest to mend.
    examples = list(dict.fromkeys([*near, *reasons]))[:_SHOWN]
    lines = [
        f"{len(reasons)} of {len(records.images)} images cannot be used, such as",
        *(f"  {records.images[i].path}: {reasons[i]}" for i in examples),
    ]
    if near:
        lines.append(
            f"For {len(near)} of them there is a file with a near name, which {near_flag} takes"
        )
    return "\n".join(lines)


def _look_at(
    records: Records, ids: Sequence[str], *, with_digests: bool
) -> dict[str, tuple[str | None, bytes]]:
    """Return why an image file cannot be used, or None, and the file's digest, by image id."""
    leads_out = link_checker(records.image_directory)

    def look(path: str) -> tuple[str | None, bytes]:
        if leads_out(path):  # such a file is not opened
            return f"a link that leads out of {records.image_directory}", b""
        if with_digests:
            return storage.check_and_digest(path)
        return storage.check_image(path), b""

    paths = [records.images[i].path for i in ids]
    return dict(zip(ids, in_parallel(look, paths, "checking", "images"), strict=True))


def _reasons(records: Records, looked: Mapping[str, str | None]) -> dict[str, str]:
    """Return the reasons that there are, those of missing images with near names."""
    reasons = {i: reason for i, reason in looked.items() if reason is not None}
    near = near_names.find(records, (i for i, reason in reasons.items() if reason == "missing"))
    return reasons | {i: n.reason() for i, n in near.items()}


def link_checker(image_directory: str) -> Callable[[str], bool]:
    """Return a function that tells whether a path in a folder is a link that leads out of it."""
    if is_remote(image_directory):
        return lambda _: False
    root = os.path.realpath(image_directory)
    # The links on the way to a folder are followed once for all of its images.
    real_folder = functools.lru_cache(maxsize=1 << 16)(os.path.realpath)

    def leads_out(path: str) -> bool:
        folder, name = os.path.split(path)
        real = os.path.join(real_folder(folder), name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return os.path.commonpath([root, real]) != root

    return leads_out
