"""Where a result's score comes from: heat maps of its two parts, as small pictures for a person.

explainer = find_explainer(trained)             # None where there is nothing to show
answer = explainer.explain(explainer.tokenize("in red"), reference_pixels, target_pixels)

A program of one shape computes them, compiled before the service is ready: what compiles later
takes the cores that searches need.
"""

import base64
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cmap_jax.evaluation.overlap import PARTS, has_parts
from cmap_jax.processing.images import preprocess_image
from cmap_jax.processing.unread_texts import check_lengths
from cmap_jax.retrieval.queries import most_tokens
from cmap_jax.serving.answers import finite
from cmap_jax.trained import Trained
from cmap_jax.visualization.heatmaps import HeatPrograms, ImageHeat
from cmap_jax.visualization.overlays import overlay, scale_bar, sum_levels

_SIDE = 256  # pixels of an overlay: two stand side by side in the page's details
_BAR = (256, 8)  # pixels of the scale
_QUALITY = 85

# Token ids, [1, T] int32, and their number, [1] int32.
Tokens = tuple[Int[np.ndarray, "1 T"], Int[np.ndarray, "1"]]


class Explainer:
    """Makes the heat maps of one result at a time with a model.

    Attributes:
        trained: the model.
    """

    def __init__(self, trained: Trained):
        """Compile the program, which takes seconds or minutes."""
        self.trained = trained
        self._width = trained.tokenizer.width or most_tokens(trained)
        self._programs = HeatPrograms(trained.model, strongest=0)
        self._scale = _encoded(scale_bar(*_BAR))
        tokens = np.zeros((1, self._width), np.int32), np.ones(1, np.int32)
        self.explain(tokens, *[_blank(trained)] * 2)

    def tokenize(self, text: str) -> Tokens:
        """Return a text as `explain` takes it.

        Raises:
            ValueError: the text has too many tokens.
        """
        texts = [(text,)]
        tokens, lengths = self.trained.tokenize(texts)
        check_lengths(texts, lengths, most_tokens(self.trained))
        # Every text has the same width, hence one program serves all.
        return np.pad(tokens, ((0, 0), (0, self._width - tokens.shape[1]))), lengths

    def explain(
        self,
        tokens: Tokens,
        reference: UInt8[np.ndarray, "S S 3"],
        target: UInt8[np.ndarray, "S S 3"],
    ) -> dict[str, Any]:
        """Return the heat maps of a query's score against a target, as `schemas.Explanation`.

        See docs/method.md, section 13.

        Args:
            tokens: result of `tokenize`.
            reference: the query's only reference, as `preprocess_image` returns it.
            target: the picture whose score is explained, in the same form.
        """
        maps, _ = self._programs(self.trained.variables, reference[None], target[None], *tokens)
        maps = jax.tree.map(np.asarray, maps)
        pictures = (("reference", maps.reference, reference), ("target", maps.target, target))
        scores = maps.target.scores[..., 0]  # [K, L]
        parts = {
            f"{branch}/{level}": float(scores[k, row])
            for k, branch in enumerate(maps.branches)
            for row, level in enumerate(maps.levels)
        }
        overlays = {
            name: {part: _overlay(heat, maps.branches.index(part), pixels) for part in PARTS}
            for name, heat, pixels in pictures
        }
        levels = [level for level in maps.levels if level in maps.target.heat]
        return {"parts": finite(parts), "levels": levels, **overlays, "scale": self._scale}


def find_explainer(trained: Trained, previous: Explainer | None = None) -> Explainer | None:
    """Return what explains a model's scores; None where the two parts or the maps are missing.

    Args:
        trained: the model.
        previous: an explainer that is returned if it is this model's, since it is compiled.
    """
    if previous is not None and previous.trained is trained:
        return previous
    can_explain = trained.takes.both and has_parts(trained.model) and _has_maps(trained)
    return Explainer(trained) if can_explain else None


def _has_maps(trained: Trained) -> bool:
    """Tell whether the image encoder has a map at any level; nothing is computed."""

    def maps(variables: Any, images: jax.Array) -> Any:
        return trained.model.apply(variables, images, method="image_maps")

    shapes = jax.eval_shape(maps, trained.variables, jnp.asarray(_blank(trained)[None]))
    return any(shape.ndim == 4 for shape in shapes.values())


def _blank(trained: Trained) -> UInt8[np.ndarray, "S S 3"]:
    return preprocess_image(np.zeros((8, 8, 3), np.uint8), trained.preprocessing)


def _overlay(heat: ImageHeat, branch: int, pixels: np.ndarray) -> str | None:
    """Return a branch's heat map over its picture; None where it is 0 everywhere."""
    total = sum_levels([maps[branch, 0, 0] for maps in heat.heat.values()], _SIDE)
    return _encoded(overlay(pixels, total, _SIDE)) if total.max() > 0 else None


def _encoded(picture: Image.Image) -> str:
    """Return a picture as a JPEG in base64."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
