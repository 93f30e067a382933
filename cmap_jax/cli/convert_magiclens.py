"""MagicLens' published files, for `cmap convert`."""

import argparse

from cmap_jax.cli.conversion import (
    Conversion,
    describe_zero_shot,
    make_config,
    next_steps,
    read_tokenizer,
)
from cmap_jax.convert.magiclens import load_magiclens
from cmap_jax.models.encoders import text_entry, text_settings


def read(arguments: argparse.Namespace) -> Conversion:
    """Read a file of weights, and CLIP's tokenizer from elsewhere.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or no tokenizer.
    """
    source = arguments.source
    if arguments.tokenizer is None:
        raise ValueError(
            f"{source} has no tokenizer in it: give CLIP's with --tokenizer, a folder of a CLIP as "
            "Hugging Face stores it or bpe_simple_vocab_16e6.txt.gz (in the package "
            "open_clip_torch)"
        )
    changes, variables = load_magiclens(source)
    config = make_config(changes)
    if arguments.scaling:
        config.data.scaling = arguments.scaling
    tokenizer = read_tokenizer(config, arguments.tokenizer, source)
    model = config.model
    empty = text_entry(model).empty_text(text_settings(model), model.text.vocabulary_size)
    if tuple(tokenizer.encode("")) != empty:
        raise ValueError(
            f"{arguments.tokenizer} encodes the empty text as {tokenizer.encode('')}, and {source} "
            f"expects {list(empty)}: give the tokenizer of OpenAI's CLIP"
        )
    return Conversion(
        description=describe_zero_shot(config, tokenizer, source, arguments.read_as),
        variables=variables,
        about="",
        notes=next_steps(arguments.out),
    )
