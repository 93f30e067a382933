"""The result of reading a source for `cmap convert`, and what several kinds of sources share."""

import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cmap_jax.processing.images import UPRIGHT, ImagePreprocessing
from cmap_jax.processing.tokenizers import tokenizer_class
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.workdir import description as workdir_lib
from cmap_jax.workdir.description import Description
from configs import default


class Conversion(NamedTuple):
    """A source that was read.

    Attributes:
        description: everything of the new workdir but the weights.
        variables: the variables of the model that the description's config describes.
        about: facts of the source in brackets, after a space; or empty.
        notes: lines to print.
    """

    description: Description
    variables: Mapping[str, Any]
    about: str
    notes: tuple[str, ...]


def make_config(changes: Mapping[str, Any]) -> ConfigDict:
    """Return the default config with some fields changed, given by path."""
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    return config


def read_tokenizer(config: ConfigDict, files: str | os.PathLike, source: str) -> Tokenizer:
    """Return the tokenizer of a model with sub-words.

    Args:
        config: a whole config.
        files: a Hugging Face folder, or a file of CLIP's sub-words.
        source: the model's weights, for messages.

    Raises:
        FileNotFoundError, ValueError: no such files, damaged ones, or another model's; names them.
    """
    text = config.model.text
    tokenizer = tokenizer_class(text.tokenizer).from_data(os.fspath(files), (), ())
    if len(tokenizer) != text.vocabulary_size:
        raise ValueError(
            f"{os.fspath(files)} gives {len(tokenizer)} token ids, but the token embedding of "
            f"{source} has {text.vocabulary_size} rows: they do not belong together. Give the "
            "model's own with --tokenizer"
        )
    return tokenizer


def describe_zero_shot(
    config: ConfigDict, tokenizer: Tokenizer, source: str, read_as: str | None
) -> Description:
    """Return the description of a model that was trained on no data set's triplets.

    Args:
        config: a whole config.
        tokenizer: the model's.
        source: the model's weights.
        read_as: how pictures are read; None: upright, since it is people's photographs that such a
            model is meant for.
    """
    data = config.data
    return Description(
        config=config,
        tokenizer=tokenizer,
        preprocessing=ImagePreprocessing(
            resize=data.resize,
            crop=data.crop,
            fit=data.fit,
            resampling=data.resampling,
            scaling=data.scaling,
            read_as=read_as or UPRIGHT,
        ),
        protocols=(),
        facts={
            workdir_lib.CONVERTED_FROM: os.path.basename(os.path.normpath(source)),
            workdir_lib.ZERO_SHOT: True,
        },
    )


def with_temperature(variables: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """Return the variables of two towers with the temperature of a new model."""
    scale = np.asarray(config.model.logit_scale, np.float32)
    return {**variables, "params": {**variables["params"], "logit_scale": scale}}


def next_steps(workdir: str) -> tuple[str, ...]:
    """Return the lines that say how a converted model is used."""
    workdir = shlex.quote(workdir)
    return (
        "It was trained on no data set's triplets: its numbers are marked as zero-shot.",
        f"Next: cmap evaluate {workdir} --data fashion_iq --dir ...",
        f"To train it further: python main.py --config={workdir}/config.json "
        f"--config.init_from={workdir} --workdir=... --config.data.name=fashion_iq "
        "--config.data.directory=... --config.model.image.frozen=false "
        "--config.model.text.frozen=false --config.optimizer.learning_rate=2e-6",
    )
