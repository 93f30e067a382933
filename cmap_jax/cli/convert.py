"""Convert one of the authors' checkpoints to a workdir, to evaluate, load or fine-tune it.

cmap convert model_best.pth --vocab vocab.pkl --out runs/released
python main.py --mode=evaluate --workdir=runs/released --config.data.directory=fashion-iq
"""

import argparse
import importlib
import os
import pathlib

from ml_collections import ConfigDict

from cmap_jax.cli.arguments import path
from cmap_jax.convert.reference import ReferenceCheckpoint, read_reference_checkpoint
from cmap_jax.convert.release_vocabulary import load_release_vocabulary
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.trained import write_model
from cmap_jax.workdir import description as workdir_lib

# The release's name of each data set, our config file for it, and the paper's protocol.
_DATA_SETS = {
    "fashionIQ": ("fashioniq", "fashioniq/original"),
    "shoes": ("shoes", "shoes"),
    "fashion200K": ("fashion200k", "fashion200k"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "checkpoint", type=path, help="one of the authors' checkpoints, such as model_best.pth"
    )
    parser.add_argument(
        "--vocab",
        required=True,
        type=path,
        metavar="FILE|DATASET_DIR",
        help="its vocabulary: vocab.txt (a word a line), a JSON list or object, the release's "
        "vocab.pkl, or the data set's folder, whose captions the vocabulary is rebuilt from",
    )
    parser.add_argument(
        "--out", required=True, metavar="WORKDIR", type=path, help="the new folder to write"
    )
    parser.add_argument(
        "--data-name",
        choices=sorted(_DATA_SETS),
        help="the data set it was trained on, if the checkpoint does not name it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint; an error leaves no workdir behind."""
    if os.path.exists(arguments.out):
        raise FileExistsError(f"{arguments.out} exists; name a new folder with --out")
    checkpoint = read_reference_checkpoint(arguments.checkpoint)
    data_name = arguments.data_name or checkpoint.arguments.get("data_name")
    if not isinstance(data_name, str) or data_name not in _DATA_SETS:
        raise ValueError(
            f"{arguments.checkpoint}: its args.data_name is {repr(data_name)[:80]}, none of "
            f"{', '.join(_DATA_SETS)}; give --data-name"
        )
    config_name, protocol = _DATA_SETS[data_name]
    config = importlib.import_module(f"configs.{config_name}").get_config()
    config.model = checkpoint.model_config
    vocabulary = _read_vocabulary(arguments.vocab, config)
    if len(vocabulary) != config.model.text.vocabulary_size:
        raise ValueError(
            f"{arguments.vocab} gives {len(vocabulary)} words, special ones included, but the word "
            f"embedding of {arguments.checkpoint} has {config.model.text.vocabulary_size} rows: "
            "they do not belong together"
        )
    facts = {
        workdir_lib.CONVERTED_FROM: os.path.basename(arguments.checkpoint),
        "epoch": checkpoint.epoch,
        "best_score": checkpoint.best_score,
    }
    write_model(
        arguments.out,
        workdir_lib.Description(
            config=config,
            tokenizer=vocabulary,
            preprocessing=ImagePreprocessing(resize=config.data.resize, crop=config.data.crop),
            protocols=(PROTOCOLS[protocol],),
            facts=facts,
        ),
        CMAP.from_config(config),
        checkpoint.variables,
    )
    print(f"{arguments.out} holds the model of {arguments.checkpoint}{_origin(checkpoint)}.")
    if checkpoint.left_out:
        print(f"Left out, since their classes are not loaded: {', '.join(checkpoint.left_out)}.")
    print(
        f"Next: python main.py --mode=evaluate --workdir={arguments.out} "
        "--config.data.directory=..."
    )
    return 0


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
