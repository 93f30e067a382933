"""Digests of the parts of a data set, by which a run knows its data again.

digests.of_records(records)                        # by part, such as "train" and "cirr/val/queries"
digests.of_images({"dress.jpg": of_file(file)})    # one digest of all images

`cmap_jax.facts` has the parts' names, and says in words which of two data sets' parts differ.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import BinaryIO

from cmap_jax.facts import GALLERY, QUERIES, TRAIN
from input_pipeline.records import Records, digest_of

# A file of at most twice this size is read as a whole, of a larger one this much at either end.
_END_BYTES = 1 << 15


def of_records(records: Records) -> dict[str, str]:
    """Return the digests of the training items, in order, and of each evaluation, by part.

    The images' paths play no part, and the same data prepared have the same digests.
    """
    digests = {}
    if len(records.train):
        items = [(t.reference, t.target, t.captions, t.category) for t in records.train.items()]
        digests[TRAIN] = digest_of([records.train.stored_as, items])
    for evaluations in records.evaluations.values():
        for evaluation in evaluations:
            conditions = evaluation.conditions()
            for part, key in ((QUERIES, "queries"), (GALLERY, "gallery")):
                digests[f"{evaluation.protocol.name}/{part}"] = conditions[key]
    return digests


def of_file(file: BinaryIO) -> bytes:
    """Return a digest of an image file: its size, and its bytes.

    Above 64 KB, only the first and the last 32 KB are read. Another picture has others, and so has
    one that was encoded anew; damage in the middle of a large file is not seen.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256(str(size).encode() + b" ")
    if size <= 2 * _END_BYTES:
        digest.update(file.read())
    else:
        digest.update(file.read(_END_BYTES))
        file.seek(size - _END_BYTES)
        digest.update(file.read())
    return digest.digest()


def of_images(images: Mapping[str, bytes]) -> str:
    """Return the digest of many images from the digest of each, by id, in any order."""
    return digest_of([(i, images[i].hex()) for i in sorted(images)])
