"""How much of a data set's texts a model can read, and what is too little to train on."""

import collections
import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping

from cmap_jax.facts import UnreadTexts
from cmap_jax.processing.tokenizing import Tokenizer, join_captions
from input_pipeline.records import DataError, Evaluation, Records

_logger = logging.getLogger(__name__)

# Shares of texts that are not read: a model learns badly above the first two, and not at all above
# the third.
MANY_WORDLESS, MANY_UNKNOWN, TOO_MUCH = 0.05, 0.2, 0.5

ALLOW = "--config.data.unreadable_texts=allow"
_SHOWN = 80  # characters of a caption in an error
_NAMED = 10  # frequent unknown words that results keep


@dataclasses.dataclass(frozen=True)
class Reading:
    """How much of some captions a tokenizer reads.

    Attributes:
        captions: number of captions that are not blank.
        wordless: how often each caption occurs that loses all words in cleaning.
        words: number of words in all captions.
        unknown: how often each unknown word occurs.
        example: a caption with the most unknown words.
    """

    captions: int
    wordless: collections.Counter[str]
    words: int
    unknown: collections.Counter[str]
    example: str

    @property
    def wordless_share(self) -> float:
        """The share of captions that lose all words, 0 to 1."""
        return self.wordless.total() / max(self.captions, 1)

    @property
    def unknown_share(self) -> float:
        """The share of words that are unknown, 0 to 1."""
        return self.unknown.total() / max(self.words, 1)


def read_captions(captions: Collection[str], tokenizer: Tokenizer) -> Reading:
    """Return how much of some captions a tokenizer reads."""
    times = collections.Counter(captions)  # published captions repeat
    wordless: collections.Counter[str] = collections.Counter()
    unknown: collections.Counter[str] = collections.Counter()
    words, worst, example = 0, 0, ""
    for caption, count in times.items():
        words += count * len(tokenizer.split(caption))
        if tokenizer.loses_all_words(caption):
            wordless[caption] = count
        lost = collections.Counter(tokenizer.unknown(caption))
        if lost.total() > worst:
            worst, example = lost.total(), caption
        for word in lost:
            unknown[word] += count * lost[word]
    not_blank = sum(count for caption, count in times.items() if caption.strip())
    return Reading(
        captions=not_blank,
        wordless=wordless,
        words=words,
        unknown=unknown,
        example=example,
    )


def trained_splits(records: Records) -> tuple[str, ...]:
    """Return the splits whose texts a training run reads: to train on, and to evaluate on."""
    return ("train", *records.evaluations) if len(records.train) else ()


def wordless_remedy(tokenizer: Tokenizer) -> str:
    """Return the remedy for captions that lose all their words."""
    return (
        f"write them with {tokenizer.readable}, translated or transliterated: all others are "
        "dropped"
    )


def words_remedy(tokenizer: Tokenizer | None) -> str:
    """Return the remedy for unknown words, given a model's tokenizer; None: one of the data."""
    if tokenizer is None:
        return "write these captions in the language and spelling of those of train"
    if not tokenizer.counts_words:
        return (
            f"write these captions with {tokenizer.readable}, or choose a text encoder whose "
            "tokenizer reads them"
        )
    return (
        "train a model without config.init_from, which counts these words, or use one that was "
        "trained on such captions"
    )


def check_readable(readings: Mapping[str, Reading], tokenizer: Tokenizer, remedy: str) -> None:
    """Refuse to train on texts of which a model can read less than half.

    Args:
        readings: by split that training uses, how much of its captions the tokenizer reads.
        tokenizer: shows in the error what is left of a caption.
        remedy: advice against unknown words, see `words_remedy`.

    Raises:
        DataError: names the split, the share, a text, what is left of it, and the remedy.
    """
    for split, reading in readings.items():
        if reading.wordless_share > TOO_MUCH:
            example, cure = next(iter(reading.wordless)), wordless_remedy(tokenizer)
            problem = (
                f"{reading.wordless.total():,} of {reading.captions:,} {split} captions lose all "
                "their words in cleaning"
            )
        elif reading.unknown_share > TOO_MUCH:
            example, cure = reading.example, remedy
            problem = (
                f"{reading.unknown.total():,} of {reading.words:,} words of the {split} captions "
                "are not in the vocabulary"
            )
        else:
            continue
        raise DataError(
            f"{problem}: {example[:_SHOWN]!r} is read as {tokenizer.as_read(example)[:_SHOWN]!r}. "
            f"{cure[0].upper()}{cure[1:]}; or train all the same with {ALLOW}"
        )


def report_cut_texts(texts: Iterable[tuple[str, ...]], tokenizer: Tokenizer) -> None:
    """Warn of texts that are longer than a tokenizer's limit.

    Args:
        texts: the captions of each text.
        tokenizer: cuts them.
    """
    if tokenizer.limit is None:
        return
    texts = set(texts)
    if cut := sorted(text for text in texts if tokenizer.cuts(text)):
        _logger.warning(
            "%d of %d texts are longer than %d tokens, and their ends are not read, such as that "
            "of %r. Shorten them",
            *(len(cut), len(texts), tokenizer.limit, join_captions(cut[0])[:_SHOWN]),
        )


def unread_shares(
    evaluations: Iterable[Evaluation], tokenizer: Tokenizer
) -> dict[str, UnreadTexts]:
    """Return by protocol how much of its queries' texts a tokenizer cannot read."""
    shares = {}
    for evaluation in evaluations:
        reading = read_captions([c for q in evaluation.queries for c in q.captions], tokenizer)
        shares[evaluation.protocol.name] = UnreadTexts(
            unknown_words_percent=100 * reading.unknown_share,
            most_frequent_unknown=dict(reading.unknown.most_common(_NAMED)),
            wordless_captions_percent=100 * reading.wordless_share,
        )
    return shares
