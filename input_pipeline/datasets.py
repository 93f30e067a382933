"""`create_datasets`: read, check, count the words, and make the batches of a config's data set."""

import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from cmap_jax.processing.images import ImagePreprocessing, check_image_file
from cmap_jax.processing.tokenizer import Vocabulary, tokenize
from input_pipeline import fashion200k, fashion_iq, shoes
from input_pipeline.batching import EvaluationData, TrainingData
from input_pipeline.garments import reader as garments_reader
from input_pipeline.records import DataError, Image, Records

_READERS = {"fashion_iq": fashion_iq, "fashion200k": fashion200k, "shoes": shoes}
_CHECKERS = 16  # threads; on a network file system most of a check is waiting


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Everything that training and evaluation read.

    Attributes:
        vocabulary: the words.
        preprocessing: what is done to an image.
        train: training batches; None where only evaluation was asked for.
        evaluations: by split: "val" always, "test" where the data set has one.
        facts: what results must be stamped with: the skipped images, oracle ceilings, and the
            number of training items.
        word_counts: how often each word occurs in the captions that made the vocabulary; empty
            where only evaluation was asked for.
    """

    vocabulary: Vocabulary
    preprocessing: ImagePreprocessing
    train: TrainingData | None
    evaluations: Mapping[str, EvaluationData]
    facts: Mapping[str, Any]
    word_counts: Mapping[str, int]


def create_datasets(
    config: Any,
    vocabulary: Vocabulary | None = None,
    *,
    training: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Datasets:
    """Read a data set and check it before any long work starts.

    Args:
        config: a whole config.
        vocabulary: that of an existing model; None: counted from the training captions.
        training: False to leave the training items and their images alone, for evaluation.
        process_index: which share of each global batch to make.
        process_count: number of shares.

    Raises:
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations; missing or unreadable images under
            ``missing_images="fail"``; fewer training items than a batch.
        ValueError: an impossible config field.
    """
    data = config.data
    preprocessing = ImagePreprocessing(resize=data.resize, crop=data.crop)
    if data.missing_images not in ("fail", "skip"):
        raise ValueError(
            f'config.data.missing_images must be "fail" or "skip", not {data.missing_images!r}'
        )
    records = read_records(config)
    if vocabulary is None:
        vocabulary = Vocabulary.build(records.vocabulary_captions, records.extra_special)
    if not training:
        records = records.for_evaluation()
    records, skipped = _leave_out_missing(records, data.missing_images)
    train = None
    if training:
        train = _training_data(
            config, records, vocabulary, preprocessing, process_index, process_count
        )
    evaluations = {
        split: EvaluationData(
            records, evaluations, vocabulary, preprocessing, batch_size=config.eval.batch_size
        )
        for split, evaluations in records.evaluations.items()
    }
    facts = {**records.facts, "images_skipped": skipped}
    counts: collections.Counter[str] = collections.Counter()
    if train is not None:
        facts["training_items"] = len(records.train)
        for caption in records.vocabulary_captions:
            counts.update(tokenize(caption))
    return Datasets(vocabulary, preprocessing, train, evaluations, facts, counts)


def _training_data(
    config: Any,
    records: Records,
    vocabulary: Vocabulary,
    preprocessing: ImagePreprocessing,
    process_index: int,
    process_count: int,
) -> TrainingData:
    """Return the training batches, or refuse a batch that there are not the items for."""
    batch_size = config.train.batch_size
    if batch_size > len(records.train):
        raise DataError(
            f"config.train.batch_size is {batch_size}, but there are only {len(records.train)} "
            f"training items in {config.data.directory}"
        )
    if batch_size % process_count:
        raise ValueError(
            f"config.train.batch_size={batch_size} is not a multiple of the {process_count} "
            "processes"
        )
    return TrainingData(
        records,
        vocabulary,
        preprocessing,
        batch_size=batch_size,
        seed=config.seed,
        process_index=process_index,
        process_count=process_count,
    )


def read_records(config: Any) -> Records:
    """Read the annotations of ``config.data.name``; garments are rendered first where needed."""
    data = config.data
    known = (*_READERS, "garments")
    if data.name not in known:
        raise ValueError(f"config.data.name must be one of {', '.join(known)}; got {data.name!r}")
    if not data.directory:
        raise ValueError(
            "config.data.directory is not set: give the folder that holds the annotations, "
            "--config.data.directory=..."
        )
    if data.name == "garments":
        if data.image_directory:
            raise ValueError("config.data.image_directory: garments keep their images with them")
        return garments_reader.read(data.directory, **data.garments)
    return _READERS[data.name].read(data.directory, data.image_directory)


def check_images(images: Iterable[Image]) -> dict[str, str]:
    """Look at every image file; return the reason of each that cannot be used, by image id."""
    images = tuple(images)
    started = reported = time.monotonic()
    reasons: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(_CHECKERS) as pool:
        # A path in a bucket needs its own reader.
        paths = (epath.Path(i.path) if "://" in i.path else i.path for i in images)
        found = pool.map(check_image_file, paths)
        for done, (image, reason) in enumerate(zip(images, found, strict=True), 1):
            if reason is not None:
                reasons[image.id] = reason
            now = time.monotonic()
            if now - reported > 5:
                reported = now
                rate = done / (now - started)
                logging.info(
                    "checked %d of %d images (%.0f/s, %.0f s left)",
                    done,
                    len(images),
                    rate,
                    (len(images) - done) / rate,
                )
    return reasons


def _leave_out_missing(records: Records, policy: str) -> tuple[Records, int]:
    """Refuse records with unusable images, or return them without those, and their number."""
    reasons = check_images(records.images.values())
    if not reasons:
        return records, 0
    examples = "\n".join(
        f"  {records.images[i].path}: {reason}" for i, reason in list(reasons.items())[:5]
    )
    summary = f"{len(reasons)} of {len(records.images)} images cannot be used, such as\n{examples}"
    if policy == "fail" or len(reasons) == len(records.images):
        remedy = "Restore them, set --config.data.image_directory to the folder with the images"
        if policy == "fail":
            remedy += ", or leave these out with --config.data.missing_images=skip"
        raise DataError(f"{summary}\n{remedy}")
    logging.warning("%s\nThey are left out, and counted in the results.", summary)
    return records.without(set(reasons)), len(reasons)
