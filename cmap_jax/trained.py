"""A trained model, out of a workdir that holds all that a use of it needs.

trained = load("runs/garments")
pyramid = trained.encode_images(["dress.jpg"])
text = trained.encode_text(["is red and longer"])
"""

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cmap_jax import workdir as workdir_lib
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing import images as images_lib
from cmap_jax.processing.files import complete_folder, expand
from cmap_jax.processing.tokenizer import Vocabulary, loses_all_words
from cmap_jax.variables import read_variables, variables_to_save
from cmap_jax.workdir import Description

_BATCH = 64  # images encoded at once
_NAMED = 10  # unknown words in a warning
_SHOWN = 80  # characters of a text in a warning


class Trained:
    """A trained model, ready to use.

    Attributes:
        config: the whole config of its run.
        model: the Flax module.
        variables: its parameters and statistics.
        vocabulary: the words it knows.
        preprocessing: what is done to an image.
        protocol: what chose these weights.
        step: training steps that these weights have seen.
    """

    def __init__(self, description: Description, model: CMAP, variables: Any, step: int):
        """See `load`."""
        self.config = description.config
        self.model = model
        self.variables = variables
        self.vocabulary = description.vocabulary
        self.preprocessing = description.preprocessing
        self.protocol = description.protocols[0]
        self.step = step

    def encode_text(self, texts: Sequence[str | Sequence[str]]) -> jax.Array:
        """Encode texts, each one caption or a sequence of one or two, to [B, D] float32.

        Words that the model does not know are all the same to it; a warning names them.
        """
        if isinstance(texts, str):
            raise TypeError("encode_text takes a sequence of texts: [text]")
        if problem := _unread(texts, self.vocabulary):
            logging.warning("%s", problem)
        tokens, lengths = self.vocabulary.encode_batch(texts)
        return self._encode_text(self.variables, tokens, lengths)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """Encode images to their pyramid, [L, B, D] float32.

        Args:
            images: paths, PIL images, encoded bytes or uint8 arrays [H, W, 3], as
                `cmap_jax.processing.images.read_image` takes them.
        """
        if isinstance(images, str | os.PathLike):
            raise TypeError("encode_images takes a sequence of images: [image]")
        if not len(images):
            raise ValueError("no images to encode")
        pyramids = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack(
                [
                    images_lib.preprocess_image(image, self.preprocessing)
                    for image in images[start : start + _BATCH]
                ]
            )
            pyramids.append(np.asarray(self._encode_images(self.variables, pixels)))
        return np.concatenate(pyramids, axis=1)

    @functools.cached_property
    def _encode_text(self) -> Any:
        return jax.jit(lambda v, t, n: self.model.apply(v, t, n, method="encode_text"))

    @functools.cached_property
    def _encode_images(self) -> Any:
        return jax.jit(lambda v, x: self.model.apply(v, x, method="encode_images"))


def _unread(texts: Sequence[str | Sequence[str]], vocabulary: Vocabulary) -> str:
    """Return what a model with this vocabulary cannot read of some texts; empty if nothing."""
    captions = [c for text in texts for c in ((text,) if isinstance(text, str) else text)]
    problems = []
    if unknown := vocabulary.unknown_words(captions):
        named = [
            f'"{word}": {near}' if (near := vocabulary.nearest(word)) else f'"{word}"'
            for word, _ in unknown.most_common(_NAMED)
        ]
        more = f", and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        problems.append(
            "words that this model does not know, all read as <unk>, each with the nearest that it "
            f"knows, if any: {', '.join(named)}{more}"
        )
    if lost := [c for c in captions if loses_all_words(c)]:
        problems.append(
            f"no word is left of {len(lost)} texts, such as {lost[0][:_SHOWN]!r}: only the letters "
            "a to z are read"
        )
    return "; ".join(problems)


def load(workdir: str | os.PathLike) -> Trained:
    """Load the best variables of a workdir. Needs neither the data nor TensorFlow.

    Args:
        workdir: its folder; ``~`` and ``$NAME`` are expanded.

    Raises:
        FileNotFoundError: not a workdir, or one without a checkpoint yet.
        ValueError: files that are broken or do not fit one another; says which.
    """
    workdir = expand(os.fspath(workdir))
    description = workdir_lib.read_description(workdir)
    model = CMAP.from_config(description.config)
    step, variables = read_variables(workdir, model, description.preprocessing.crop)
    return Trained(description, model, variables, step)


def write_model(
    workdir: str | os.PathLike, description: Description, model: CMAP, variables: Any
) -> None:
    """Write a workdir that holds a model and no run; it appears when it is complete.

    Raises:
        ValueError: the variables are not those of the model.
        OSError: the folder is there already and not empty, or cannot be written.
    """
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(64)))
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (expected, variables)]
    if shapes[0] != shapes[1]:
        raise ValueError("the variables are not those of the model")
    with complete_folder(workdir_lib.absolute(workdir)) as scratch:
        with ocp.CheckpointManager(scratch / workdir_lib.BEST) as manager:
            mark = workdir_lib.mark_of_run(description.config)
            manager.save(0, args=variables_to_save(variables, mark))
        workdir_lib.write_description(scratch, description)
