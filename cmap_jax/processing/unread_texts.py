"""Texts that a model reads in part, which is worth a warning, or cannot read at all."""

import collections
from collections.abc import Sequence

import numpy as np

from cmap_jax.processing.tokenizing import Text, Tokenizer, captions_of

_NAMED_WORDS = 10  # unknown words in a warning
_SHOWN = 80  # characters of a text in a message


def describe_unread(texts: Sequence[Text], tokenizer: Tokenizer) -> str:
    """Return a warning about the parts of texts that a tokenizer does not read; empty if none."""
    captions = [caption for text in texts for caption in captions_of(text)]
    problems = []
    if unknown := collections.Counter(w for c in captions for w in tokenizer.unknown(c)):
        named = [
            f'"{word}": {near}' if (near := tokenizer.nearest(word)) else f'"{word}"'
            for word, _ in unknown.most_common(_NAMED_WORDS)
        ]
        more = f", and {len(unknown) - _NAMED_WORDS} more" if len(unknown) > _NAMED_WORDS else ""
        problems.append(
            "words that this model does not know, all read as <unk>, each with the nearest that it "
            f"knows, if any: {', '.join(named)}{more}"
        )
    if lost := [c for c in captions if tokenizer.loses_all_words(c)]:
        problems.append(
            f"no word is left of {len(lost)} texts, such as {lost[0][:_SHOWN]!r}: only "
            f"{tokenizer.readable} are read"
        )
    if cut := [text for text in texts if tokenizer.cuts(text)]:
        problems.append(
            f"the ends of {len(cut)} texts are not read, such as that of "
            f"{captions_of(cut[0])[0][:_SHOWN]!r}: they are longer than {tokenizer.limit} tokens"
        )
    return "; ".join(problems)


def check_lengths(texts: Sequence[Text], lengths: np.ndarray, most: int) -> None:
    """Refuse texts that are longer than a model or a search can take.

    Args:
        texts: B texts.
        lengths: [B] int, their tokens.
        most: most tokens of a text.

    Raises:
        ValueError: a text has more; names the longest one.
    """
    if lengths.max(initial=0) > most:
        text = " and ".join(captions_of(texts[int(lengths.argmax())]))
        raise ValueError(
            f"the text {text[:_SHOWN]!r}... has {lengths.max()} tokens, more than the {most} that "
            "are read: shorten it"
        )
