"""A look at every image file before long work starts: for training, and for `cmap doctor`."""

import concurrent.futures
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cmap_jax.processing.progress import track
from input_pipeline import storage
from input_pipeline.records import DataError, Image, Records

# Threads. In a bucket a look is mostly waiting; at home more threads only wait for one another's
# turn with the interpreter (16 of them take three times as long as one, files in memory).
_WORKERS, _WORKERS_IN_BUCKET = 4, 16
_CHUNK = 64  # places a thread takes at once
_SHOWN = 5  # examples in a message


def check_images(images: Iterable[Image], image_directory: str) -> dict[str, str]:
    """Look at every image file; return the reason of each that cannot be used, by image id.

    Args:
        images: the images.
        image_directory: the folder that they lie in; a link that leads out of it is refused.
    """
    images = tuple(images)
    check = _checker(image_directory)
    found = in_parallel(check, [image.path for image in images], "checking", "images")
    return {i.id: reason for i, reason in zip(images, found, strict=True) if reason is not None}


def in_parallel(
    work: Callable[[str], Any], places: Sequence[str], what: str, unit: str
) -> Iterator[Any]:
    """Yield the results of some work on each place, in order, with progress."""
    # Handing out files one by one takes as long as looking at a small one.
    chunks = [places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK)]
    remote = any(storage.is_remote(place) for place in places[:1])
    workers = _WORKERS_IN_BUCKET if remote else _WORKERS
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            results = pool.map(lambda chunk: [work(place) for place in chunk], chunks)
            flat = itertools.chain.from_iterable(results)
            yield from track(flat, len(places), what, unit)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for all the rest


def leave_out_unusable(records: Records, policy: str) -> tuple[Records, tuple[str, ...]]:
    """Return the records without unusable images, and the ids of those.

    Raises:
        DataError: there are some, and the policy is "fail" or there are no others.
    """
    reasons = check_images(records.images.values(), records.image_directory)
    if not reasons:
        return records, ()
    summary = describe_unusable(records, reasons)
    if policy == "fail" or len(reasons) == len(records.images):
        remedy = "Restore them, set --config.data.image_directory to the folder with the images"
        if policy == "fail":
            remedy += ", or leave these out with --config.data.missing_images=skip"
        raise DataError(
            f"{summary}\n{remedy}. All that is wrong: cmap doctor {records.name} DIRECTORY"
        )
    logging.warning("%s\nThey are left out, and counted in the results.", summary)
    return records.without(set(reasons)), tuple(sorted(reasons))


def describe_unusable(records: Records, reasons: Mapping[str, str]) -> str:
    """Return how many of the images cannot be used, and some of them with their reasons."""
    lines = [
        f"{len(reasons)} of {len(records.images)} images cannot be used, such as",
        *(f"  {records.images[i].path}: {reasons[i]}" for i in list(reasons)[:_SHOWN]),
    ]
    return "\n".join(lines)


def _checker(image_directory: str) -> Callable[[str], str | None]:
    """Return a function from an image's place to the reason why it cannot be used, or None."""
    remote = storage.is_remote(image_directory)
    root = image_directory if remote else os.path.realpath(image_directory)
    # The links on the way to a folder are followed once, not once an image.
    real_folder = functools.lru_cache(maxsize=1 << 16)(os.path.realpath)

    def leaves(place: str) -> bool:
        folder, name = os.path.split(place)
        real = os.path.join(real_folder(folder), name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return os.path.commonpath([root, real]) != root

    def check(place: str) -> str | None:
        # Before the file is opened.
        if not remote and leaves(place):
            return f"a link that leads out of {image_directory}"
        return storage.check_image(place)

    return check
