"""A CLIP or SigLIP as Hugging Face stores it, for `cmap convert`: the method "sum"."""

import argparse
from typing import Any

from etils import epath

from cmap_jax.cli.conversion import (
    Conversion,
    describe_zero_shot,
    make_config,
    next_steps,
    read_tokenizer,
    with_temperature,
)
from cmap_jax.convert.hugging_face import load_hugging_face
from cmap_jax.files import read_json
from cmap_jax.models.composers import COMPOSERS

# BGE-VL's folders name the code that composes their features, in which this word occurs.
_BGE_VL = "mmret"


def read(arguments: argparse.Namespace) -> Conversion:
    """Read both towers and the tokenizer.

    Raises:
        FileNotFoundError, ValueError: no such folder or id, damaged files, or another model.
    """
    source = arguments.source
    weight = 1.0 if arguments.text_weight is None else arguments.text_weight
    COMPOSERS["sum"].settings["text_weight"].check(weight, "--text-weight")
    changes, variables, folder = load_hugging_face(source)
    config = make_config({**changes, "model.variant": "sum"})
    is_bge_vl = _is_bge_vl(folder)
    normalize = not is_bge_vl if arguments.normalize is None else arguments.normalize
    config.model.sum.update(normalize=normalize, text_weight=weight)
    tokenizer = read_tokenizer(config, arguments.tokenizer or folder, source)
    form = "l2-normalised" if normalize else "as they are"
    notes = (f"Queries are the picture's feature plus {weight:g} times the text's, {form}.",)
    if is_bge_vl and arguments.normalize is None:
        notes += ("It is a BGE-VL, whose features are added without normalisation.",)
    return Conversion(
        description=describe_zero_shot(config, tokenizer, source, arguments.read_as),
        variables=with_temperature(variables, config),
        about="",
        notes=(*notes, *next_steps(arguments.out)),
    )


def _is_bge_vl(folder: epath.Path) -> bool:
    content: Any = read_json(folder / "config.json")
    code = content.get("auto_map") if isinstance(content, dict) else None
    return isinstance(code, dict) and _BGE_VL in str(code).lower()
