"""A warning about texts that a model reads in part: unknown words, dropped characters, cut ends."""

import collections
from collections.abc import Sequence

from cmap_jax.processing.tokenizing import Text, Tokenizer, captions_of

_NAMED_WORDS = 10  # unknown words in a warning
_SHOWN = 80  # characters of a text in a warning


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
