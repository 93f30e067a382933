"""The table of tokenizers, by ``config.model.text.tokenizer``.

A new one is a class derived from `cmap_jax.processing.tokenizing.Tokenizer` in a file of its own,
and a line here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizing import Tokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {"words": Vocabulary}


def tokenizer_class(name: str) -> type[Tokenizer]:
    """Return an entry of the table.

    Raises:
        ValueError: there is none of this name; names those that there are.
    """
    if name not in TOKENIZERS:
        raise ValueError(
            f"config.model.text.tokenizer must be one of {', '.join(TOKENIZERS)}; got {name!r}"
        )
    return TOKENIZERS[name]


def make_tokenizer(
    text: Any, captions: Iterable[str], extra_special: Sequence[str] = ()
) -> Tokenizer:
    """Return the tokenizer of a new model.

    Args:
        text: ``config.model.text``.
        captions: raw training captions.
        extra_special: words of the data set that must have an id even if no caption has them.

    Raises:
        ValueError: there is no such tokenizer.
    """
    return tokenizer_class(text.tokenizer).from_data(text.init_from, captions, extra_special)
