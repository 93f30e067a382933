"""Convert published weights to a workdir, to evaluate, load or fine-tune them.

cmap convert model_best.pth --vocab vocab.pkl --out runs/released
cmap convert clip-vit-base-patch32 --out runs/clip
cmap convert magic_lens_clip_base.pkl --tokenizer bpe_simple_vocab_16e6.txt.gz --out runs/magiclens
cmap evaluate runs/clip --data fashion_iq --dir fashion-iq
"""

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

from cmap_jax.cli import convert_magiclens, convert_release, convert_towers
from cmap_jax.cli.arguments import path
from cmap_jax.cli.conversion import Conversion
from cmap_jax.files import check_can_write, check_regular_file
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.hub import is_hub_id
from cmap_jax.processing.images import READINGS
from cmap_jax.trained import write_model
from cmap_jax.workdir.description import absolute


class _Kind(NamedTuple):
    """A kind of source.

    Attributes:
        name: a noun phrase for messages.
        read: reads the arguments' source.
        flags: attributes of the arguments that it uses, beside the source and --out.
    """

    name: str
    read: Callable[[argparse.Namespace], Conversion]
    flags: tuple[str, ...]


_RELEASE = _Kind("a checkpoint of the authors", convert_release.read, ("vocab", "data_name"))
_TOWERS = _Kind(
    "a CLIP or SigLIP folder",
    convert_towers.read,
    ("tokenizer", "text_weight", "normalize", "read_as"),
)
_MAGICLENS = _Kind(
    "a file of MagicLens", convert_magiclens.read, ("tokenizer", "scaling", "read_as")
)
_FLAGS = tuple(dict.fromkeys(_RELEASE.flags + _TOWERS.flags + _MAGICLENS.flags))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "source",
        type=path,
        help="one of the authors' checkpoints, such as model_best.pth; a CLIP or SigLIP folder as "
        "Hugging Face stores it, or its id; or magic_lens_clip_base.pkl or ..._large.pkl",
    )
    parser.add_argument(
        "--out", required=True, metavar="WORKDIR", type=path, help="the new folder to write"
    )
    released = parser.add_argument_group("for the authors' checkpoints")
    released.add_argument(
        "--vocab",
        type=path,
        metavar="FILE|DATASET_DIR",
        help="its vocabulary: vocab.txt (a word a line), a JSON list or object, the release's "
        "vocab.pkl, or the data set's folder, whose captions the vocabulary is rebuilt from",
    )
    released.add_argument(
        "--data-name",
        choices=sorted(convert_release.DATA_SETS),
        help="the data set it was trained on, if the checkpoint does not name it",
    )
    published = parser.add_argument_group("for CLIP, SigLIP and MagicLens")
    published.add_argument(
        "--tokenizer",
        type=path,
        metavar="FOLDER|FILE",
        help="the tokenizer, if the source has none: a Hugging Face folder, or CLIP's "
        "bpe_simple_vocab_16e6.txt.gz",
    )
    published.add_argument(
        "--text-weight",
        type=float,
        help="weight of the text's feature beside the picture's, for CLIP and SigLIP (default: 1)",
    )
    published.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="l2-normalise both features before the sum, for CLIP and SigLIP (default: yes, but "
        "for a folder of BGE-VL no)",
    )
    published.add_argument(
        "--scaling",
        choices=("own_maximum", "fixed"),
        help="whether pixels are divided by the picture's own maximum, as MagicLens was released, "
        "or by 255 (default: own_maximum)",
    )
    published.add_argument(
        "--read-as",
        choices=READINGS,
        help="how pictures are read: upright, as a person sees them, or released, without EXIF's "
        "orientation and transparency, as their authors did (default: upright)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert a source; an error leaves no workdir behind."""
    if absolute(arguments.out).exists():
        raise FileExistsError(f"{arguments.out} exists; name a new folder with --out")
    check_can_write(arguments.out)
    check_regular_file(arguments.source)
    kind = _kind(arguments.source)
    for flag in _FLAGS:
        if getattr(arguments, flag) is not None and flag not in kind.flags:
            raise ValueError(
                f"--{flag.replace('_', '-')} has no meaning for {arguments.source}, which is taken "
                f"as {kind.name}: leave it out"
            )
    converted = kind.read(arguments)
    description = converted.description
    write_model(
        arguments.out, description, CMAP.from_config(description.config), converted.variables
    )
    print(f"{arguments.out} holds the model of {arguments.source}{converted.about}.")
    for note in converted.notes:
        print(note)
    return 0


def _kind(source: str) -> _Kind:
    """Return the kind of a source, by its form alone.

    Raises:
        FileNotFoundError: there is nothing there, and it is no id.
    """
    if not os.path.exists(source):
        if not is_hub_id(source) or source.endswith((".pkl", ".pth", ".pt")):
            raise FileNotFoundError(f"{source}: no such file or folder, and not an id of the hub")
        return _TOWERS
    # A folder's files are refused as such, and the folder asked for.
    if os.path.isdir(source) or source.endswith((".safetensors", ".bin", ".json")):
        return _TOWERS
    return _MAGICLENS if source.endswith(".pkl") else _RELEASE
