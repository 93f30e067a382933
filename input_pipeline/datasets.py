"""`create_datasets`: read, check, count the words, and make the batches of a config's data set."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from cmap_jax.config_fields import check_values
from cmap_jax.facts import IMAGES, DataFacts, UnreadTexts
from cmap_jax.processing.images import RELEASED, ImagePreprocessing
from cmap_jax.processing.tokenizers import make_tokenizer
from cmap_jax.processing.tokenizing import Tokenizer
from input_pipeline import digests
from input_pipeline.batching import EvaluationData, EvaluationSizes, TrainingData
from input_pipeline.doctor.findings import list_annotations, read_splits
from input_pipeline.features.loading import FeatureLoader
from input_pipeline.features.reading import FeatureFiles
from input_pipeline.images.check import leave_out_unusable
from input_pipeline.images.decoding import open_loader
from input_pipeline.images.loading import FailedImages, ImageLoader, make_loader
from input_pipeline.images.sources import open_images
from input_pipeline.reading import choose_captions, read_records
from input_pipeline.records import DataError, Records
from input_pipeline.registry import check_name, find_data_set
from input_pipeline.texts import (
    check_readable,
    report_cut_texts,
    trained_splits,
    unread_shares,
    words_remedy,
)


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The data that training and evaluation read.

    Attributes:
        tokenizer: texts to token ids.
        preprocessing: what is done to an image.
        train: training batches; None where only evaluation was asked for.
        evaluations: by split: "val" always, "test" where the data set has one.
        word_counts: how often each word occurs in the training captions; empty
            where only evaluation was asked for.
        known_facts: what was known of the data before any batch was made; see `facts`.
        failed: why images failed since.
        features: the precomputed features that stand in batches in place of pixels; None: pixels.
    """

    tokenizer: Tokenizer
    preprocessing: ImagePreprocessing
    train: TrainingData | None
    evaluations: Mapping[str, EvaluationData]
    word_counts: Mapping[str, int]
    known_facts: DataFacts
    failed: Mapping[str, str]
    features: FeatureFiles | None = None

    @property
    def facts(self) -> DataFacts:
        """Facts to be stored with models and results."""
        skipped = sorted({*self.known_facts.skipped_images, *self.failed})
        return dataclasses.replace(self.known_facts, skipped_images=tuple(skipped))

    @property
    def unread_texts(self) -> dict[str, UnreadTexts]:
        """The share of the queries' texts that a model cannot read, by protocol."""
        evaluations = [e for data in self.evaluations.values() for e in data.evaluations]
        return unread_shares(evaluations, self.tokenizer)


def create_datasets(
    config: Any,
    tokenizer: Tokenizer | None = None,
    *,
    training: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Datasets:
    """Read a data set and check it before any long work starts.

    Args:
        config: a whole config.
        tokenizer: that of an existing model; None: a new one, as config.model.text asks for.
        training: False to leave the training items and their images alone, for evaluation.
        process_index: which share of each global batch to make.
        process_count: number of shares.

    Raises:
        FileNotFoundError: a folder or an annotation file is missing.
        DataError: broken annotations; missing or unreadable images under
            ``missing_images="fail"``; texts to train on that cannot be read, under
            ``unreadable_texts="fail"``; fewer training items than a batch; precomputed features
            that are damaged, or were made from other images.
        ValueError: an impossible config field.
    """
    check_fields(config, training=training)
    data = config.data
    features = FeatureFiles(data.features) if data.features else None
    preprocessing_of(config, RELEASED)  # refuses impossible sizes before anything is read
    records = choose_captions(read_records(config), config.eval.captions)
    preprocessing = preprocessing_of(config, records.read_as)
    if training and not len(records.train):
        lacking = find_data_set(records.name).training_files
        raise DataError(
            f"{data.directory}: {records.name} has nothing to train on there"
            f"{f', no {lacking}' if lacking else ''}. Evaluate a model "
            "that was trained on other data with --mode=evaluate --workdir=..."
        )
    given = tokenizer is not None
    if tokenizer is None:
        tokenizer = make_tokenizer(
            config.model.text, records.vocabulary_captions, records.extra_special
        )
    if training and data.unreadable_texts == "fail":
        used = [a for a in list_annotations(records) if a.split in trained_splits(records)]
        remedy = words_remedy(tokenizer if given or not tokenizer.counts_words else None)
        check_readable(read_splits(records, used, tokenizer), tokenizer, remedy)
    records = records.with_needed_images() if training else records.for_evaluation()
    if features is None:
        records, skipped, images = leave_out_unusable(records, data.missing_images)
    else:
        features.check_fits(records, preprocessing)
        records, skipped = features.leave_out_missing(records, data.missing_images)
        features.verify()
        images = None  # the features' own checksum stands for them
    if training:
        _check_batch(config, records, process_count)
    loader = _open_loader(config, records, preprocessing, features=features, training=training)
    process = {"process_index": process_index, "process_count": process_count}
    facts = dataclasses.replace(
        DataFacts.from_dict(records.facts),
        skipped_images=skipped,
        digests=digests.of_records(records) | ({} if images is None else {IMAGES: images}),
        features=None if features is None else features.identity,
    )
    counts: collections.Counter[str] = collections.Counter()
    train = None
    if training:
        facts = dataclasses.replace(facts, training_items=len(records.train))
        for caption in records.vocabulary_captions:
            counts.update(tokenizer.split(caption))
        train = TrainingData(
            records.train,
            tokenizer,
            preprocessing,
            loader,
            batch_size=config.train.batch_size,
            seed=config.seed,
            augment=data.augment,
            **process,
        )
    evaluated = [e for evaluations in records.evaluations.values() for e in evaluations]
    report_cut_texts(
        (
            *(records.train.longest_texts() if training else ()),
            *(query.captions for e in evaluated for query in e.queries),
        ),
        tokenizer,
    )
    sizes = EvaluationSizes.of(evaluated, tokenizer)
    evaluations = {
        split: EvaluationData(
            evaluations,
            tokenizer,
            preprocessing,
            loader,
            batch_size=config.eval.batch_size,
            sizes=sizes,
            **process,
        )
        for split, evaluations in records.evaluations.items()
    }
    return Datasets(
        tokenizer=tokenizer,
        preprocessing=preprocessing,
        train=train,
        evaluations=evaluations,
        word_counts=counts,
        known_facts=facts,
        failed=loader.failed,
        features=features,
    )


def open_images_once(config: Any) -> tuple[ImageLoader, Records]:
    """Return a loader of the images that training and evaluation need, each needed once.

    Args:
        config: a whole config; its texts play no part.

    Returns:
        The loader, and the records, which hold these images alone.

    Raises:
        FileNotFoundError, DataError, ValueError: as `create_datasets`.
    """
    check_fields(config, training=False)
    records = read_records(config).with_needed_images()
    preprocessing = preprocessing_of(config, records.read_as)
    records = leave_out_unusable(records, config.data.missing_images).records
    loader = open_loader(records, preprocessing, FailedImages(config.data.missing_images))
    return loader, records


def check_fields(config: Any, *, training: bool = True) -> None:
    """Refuse fields of ``config.data`` with which no data set could be read.

    Args:
        config: a whole config.
        training: False for an evaluation, in which images are never augmented.

    Raises:
        ValueError: names the field and its possible values.
    """
    check_name(config.data.name)
    check_values(config.data, "data")
    if training and config.data.features and config.data.augment:
        raise ValueError(
            "config.data.features holds one crop of each image, and config.data.augment=True draws "
            "another in every epoch: set --config.data.augment=false"
        )


def preprocessing_of(config: Any, read_as: str) -> ImagePreprocessing:
    """Return the preprocessing that a config asks for.

    Args:
        config: a whole config.
        read_as: how images are read where the config does not say it.

    Raises:
        ValueError: an impossible value.
    """
    data = config.data
    return ImagePreprocessing(
        resize=data.resize,
        crop=data.crop,
        read_as=data.read_as or read_as,
        fit=data.fit,
        resampling=data.resampling,
        scaling=data.scaling,
    )


def _open_loader(
    config: Any,
    records: Records,
    preprocessing: ImagePreprocessing,
    *,
    features: FeatureFiles | None,
    training: bool,
) -> ImageLoader:
    """Return the loader of pixels or of features."""
    failed = FailedImages(config.data.missing_images)
    if features is not None:
        return FeatureLoader(features, open_images(records), preprocessing, failed)
    decoding = open_loader(records, preprocessing, failed)
    if not training:  # an evaluation needs each image once
        return decoding
    return make_loader(decoding, tuple(records.images), config.data.cache_gb * 1e9)


def _check_batch(config: Any, records: Records, process_count: int) -> None:
    """Refuse a batch that is larger than the data, or that processes cannot share equally."""
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
