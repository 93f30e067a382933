"""`create_datasets`: read, check, count the words, and make the batches of a config's data set."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from cmap_jax.config_fields import check_values
from cmap_jax.facts import DataFacts, UnreadTexts
from cmap_jax.processing.images import RELEASED, ImagePreprocessing
from cmap_jax.processing.tokenizers import make_tokenizer
from cmap_jax.processing.tokenizing import Tokenizer
from input_pipeline.batching import EvaluationData, EvaluationSizes, TrainingData
from input_pipeline.doctor.findings import list_annotations, read_splits
from input_pipeline.images.check import leave_out_unusable
from input_pipeline.images.decoding import open_loader
from input_pipeline.images.loading import FailedImages, ImageLoader, make_loader
from input_pipeline.reading import read_records
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
    """

    tokenizer: Tokenizer
    preprocessing: ImagePreprocessing
    train: TrainingData | None
    evaluations: Mapping[str, EvaluationData]
    word_counts: Mapping[str, int]
    known_facts: DataFacts
    failed: Mapping[str, str]

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
            ``unreadable_texts="fail"``; fewer training items than a batch.
        ValueError: an impossible config field.
    """
    check_fields(config)
    data = config.data
    preprocessing = ImagePreprocessing(
        resize=data.resize,
        crop=data.crop,
        read_as=data.read_as or RELEASED,
        fit=data.fit,
        resampling=data.resampling,
    )
    records = read_records(config)
    if data.read_as is None:
        preprocessing = dataclasses.replace(preprocessing, read_as=records.read_as)
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
    records, skipped = leave_out_unusable(records, data.missing_images)
    if training:
        _check_batch(config, records, process_count)
    decoding = open_loader(records, preprocessing, FailedImages(data.missing_images))
    loader: ImageLoader = decoding
    if training:  # an evaluation needs each image once
        loader = make_loader(decoding, tuple(records.images), data.cache_gb * 1e9)
    process = {"process_index": process_index, "process_count": process_count}
    facts = dataclasses.replace(DataFacts.from_dict(records.facts), skipped_images=skipped)
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
    )


def check_fields(config: Any) -> None:
    """Refuse fields of ``config.data`` with which no data set could be read.

    Raises:
        ValueError: names the field and its possible values.
    """
    check_name(config.data.name)
    check_values(config.data, "data")


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
