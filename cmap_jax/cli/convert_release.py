"""The authors' checkpoints, for `cmap convert`."""

import argparse
import importlib
import os
import pathlib
import shlex

from ml_collections import ConfigDict

from cmap_jax.cli.conversion import Conversion
from cmap_jax.convert.reference import ReferenceCheckpoint, read_reference_checkpoint
from cmap_jax.convert.release_vocabulary import load_release_vocabulary
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.workdir import description as workdir_lib

# The release's name of each data set, our config file for it, and the paper's protocol.
DATA_SETS = {
    "fashionIQ": ("fashioniq", "fashioniq/original"),
    "shoes": ("shoes", "shoes"),
    "fashion200K": ("fashion200k", "fashion200k"),
}


def read(arguments: argparse.Namespace) -> Conversion:
    """Read a checkpoint and its vocabulary.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the two do not fit.
    """
    source = arguments.source
    if arguments.vocab is None:
        raise ValueError(
            f"{source} has no vocabulary in it: give the release's vocab.pkl, a vocab.txt or the "
            "data set's folder with --vocab"
        )
    checkpoint = read_reference_checkpoint(source)
    data_name = arguments.data_name or checkpoint.arguments.get("data_name")
    if not isinstance(data_name, str) or data_name not in DATA_SETS:
        raise ValueError(
            f"{source}: its args.data_name is {repr(data_name)[:80]}, none of "
            f"{', '.join(DATA_SETS)}; give --data-name"
        )
    config_name, protocol = DATA_SETS[data_name]
    config = importlib.import_module(f"configs.{config_name}").get_config()
    config.model = checkpoint.model_config
    vocabulary = _read_vocabulary(arguments.vocab, config)
    if len(vocabulary) != config.model.text.vocabulary_size:
        raise ValueError(
            f"{arguments.vocab} gives {len(vocabulary)} words, special ones included, but the word "
            f"embedding of {source} has {config.model.text.vocabulary_size} rows: they do not "
            "belong together"
        )
    facts = {
        workdir_lib.CONVERTED_FROM: os.path.basename(source),
        "epoch": checkpoint.epoch,
        "best_score": checkpoint.best_score,
    }
    notes = []
    if checkpoint.left_out:
        notes.append(
            f"Left out, since their classes are not loaded: {', '.join(checkpoint.left_out)}."
        )
    notes.append(
        f"Next: python main.py --mode=evaluate --workdir={shlex.quote(arguments.out)} "
        "--config.data.directory=..."
    )
    return Conversion(
        description=workdir_lib.Description(
            config=config,
            tokenizer=vocabulary,
            preprocessing=ImagePreprocessing(resize=config.data.resize, crop=config.data.crop),
            protocols=(PROTOCOLS[protocol],),
            facts=facts,
        ),
        variables=checkpoint.variables,
        about=_origin(checkpoint),
        notes=tuple(notes),
    )


def _origin(checkpoint: ReferenceCheckpoint) -> str:
    """Return the epoch and the score that the file states, in brackets; empty for neither."""
    parts = []
    if checkpoint.epoch is not None:
        parts.append(f"epoch {checkpoint.epoch}")
    best = checkpoint.best_score
    if best is not None:
        scores = best if isinstance(best, dict) else {"": best}
        named = ", ".join(f"{split} {score:.2f}".strip() for split, score in scores.items())
        parts.append(f"best score {named}")
    return f" ({', '.join(parts)})" if parts else ""


def _read_vocabulary(source: str, config: ConfigDict) -> Vocabulary:
    """Read the vocabulary from a file, or rebuild it from a data set's captions."""
    if os.path.isdir(source):
        # Imported here since it loads TensorFlow, which takes seconds.
        from input_pipeline.reading import read_records

        config = config.copy_and_resolve_references()
        config.data.directory = source
        records = read_records(config)
        if not records.vocabulary_captions:
            raise ValueError(f"{source}: no training captions there to build the vocabulary from")
        return Vocabulary.build(records.vocabulary_captions, records.extra_special)
    if pathlib.Path(source).suffix in (".pkl", ".pickle"):
        return load_release_vocabulary(source)
    return Vocabulary.read_file(source)
