"""The table of tokenizers, by ``config.model.text.tokenizer``.

A new one is a class derived from `cmap_jax.processing.tokenizing.Tokenizer` in a file of its own,
and a line here.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from cmap_jax.files import read_json
from cmap_jax.processing.clip_tokenizer import ClipTokenizer
from cmap_jax.processing.siglip_tokenizer import SiglipTokenizer
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizing import Tokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "words": Vocabulary,
    "clip": ClipTokenizer,
    "siglip": SiglipTokenizer,
}


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
        FileNotFoundError: it is read from files, and there are none.
        ValueError: there is no such tokenizer, or its files are damaged; names field or file.
    """
    source = text.tokenizer_files or text.init_from
    return tokenizer_class(text.tokenizer).from_data(source, captions, extra_special)


def read_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Return the tokenizer of an existing model.

    Args:
        path: a workdir, its ``vocabulary.txt``, a Hugging Face folder of a family in the table, or
            CLIP's ``bpe_simple_vocab_16e6.txt.gz``.

    Raises:
        FileNotFoundError: there is nothing at the path, or a file is missing in it.
        ValueError: a file is damaged, or nothing shows which tokenizer it is; names the file.
    """
    path = epath.Path(path)
    if path.suffix == ".gz":
        return tokenizer_class("clip").from_data(os.fspath(path), (), ())
    if not path.is_dir():
        return Vocabulary.read_file(path)
    config, rules = (
        read_json(path / name) if (path / name).exists() else {}
        for name in ("config.json", "tokenizer_config.json")
    )
    if isinstance(model := config.get("model"), dict):  # a workdir's
        return tokenizer_class(model.get("text", {}).get("tokenizer", "words")).load(path)
    family = f"{config.get('model_type')} {rules.get('tokenizer_class')}".lower()
    kinds = {"siglip": "siglip", "gemma": "siglip", "clip": "clip"}
    for word, kind in kinds.items():
        if word in family:
            return tokenizer_class(kind).from_data(os.fspath(path), (), ())
    raise ValueError(
        f"{os.fspath(path)}: neither a workdir nor a CLIP or SigLIP folder: its config.json must "
        'name the "model_type"'
    )
