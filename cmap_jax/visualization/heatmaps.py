"""Heat maps: where in a picture each part of a query's score comes from.

See docs/method.md, section 13.

    maps = explain(trained, ["dress.jpg"], ["is red"], ["red.jpg"])
    maps.branches                        # ("modified", "preserved")
    maps.target.heat["low"][1, 0]        # the preserved score's, [B, h, w], as a whole
    maps.target.heat["low"][1, 1:]       # the same of its strongest dimensions, [k, B, h, w]

`cmap_jax.visualization.overlays` draws them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cmap_jax import scoring, sharding
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.encoders import IMAGE_ENCODERS
from cmap_jax.models.encoders.transformer import ENTERING
from cmap_jax.models.variant_checks import check_halves
from cmap_jax.numerics import inverse_norm
from cmap_jax.processing.images import preprocess_image
from cmap_jax.trained import Trained

_NOISE = 1e-6  # a map below this part of the score is nothing but rounding
STRONGEST = 3  # dimensions that have heat maps of their own, unless a caller says how many


@flax.struct.dataclass
class ImageHeat:
    """The heat maps of B pictures for the K branches of a query's score.

    Attributes:
        heat: by level, [K, 1 + k, B, h, w] float32, 0 or more; first of the score as a whole, then
            of its k strongest dimensions. Levels without a map, a vector alone, are missing.
        scores: the score by branch and level, [K, L, B] float32; all levels.
        dimensions: the numbers of the strongest dimensions, [K, L, k, B] int32.
        contributions: what these dimensions add to the score, [K, L, k, B] float32.
        rollout: attention roll-out of a transformer, [B, h, w] float32, which sums to 1 where no
            other token has a weight; None for other encoders. It knows no branches.
    """

    heat: dict[str, jax.Array]
    scores: jax.Array
    dimensions: jax.Array
    contributions: jax.Array
    rollout: jax.Array | None


@flax.struct.dataclass
class HeatMaps:
    """Heat maps of queries' references and targets.

    Attributes:
        reference: those of the references. A branch that does not read the reference, such as
            "modified", has the reference scored as if it were a target.
        target: those of the targets; None without targets. The references are then scored as their
            own targets, with the norms of the score held constant.
        branches: names of the score's K branches; static.
        levels: names of all L levels; static.
    """

    reference: ImageHeat
    target: ImageHeat | None
    branches: tuple[str, ...] = flax.struct.field(pytree_node=False)
    levels: tuple[str, ...] = flax.struct.field(pytree_node=False)


def contributions(
    query: scoring.ComposedQuery, targets: Float[Array, "L B D"], *, hold_norms: bool = False
) -> Float[Array, "K L B D"]:
    """Return what each dimension adds to each query's score against its own target.

    The sum over D is the diagonal of `scoring.score_branches`.

    Args:
        query: B queries that score L levels.
        targets: the pyramid of one image a query.
        hold_norms: whether the gradient takes the norms of weighted targets for constants.
    """
    scoring.check_levels(query, targets.shape)

    def of_branch(branch: scoring.Branch) -> jax.Array:
        products = branch.numerator * targets
        if branch.weight is None:
            return products
        weighted = jnp.sum(jnp.square(branch.weight * targets), axis=-1, keepdims=True)
        norms = inverse_norm(weighted)
        return products * (jax.lax.stop_gradient(norms) if hold_norms else norms)

    return jnp.stack([of_branch(branch) for branch in query.branches])


class HeatPrograms:
    """The compiled programs that make heat maps with a model, one for each shape of pictures."""

    def __init__(self, model: CMAP, strongest: int = STRONGEST, mesh: Mesh | None = None):
        """Compile nothing yet; the programs are kept from call to call.

        Args:
            model: the Flax module.
            strongest: number k of dimensions with heat maps of their own, 0 or more.
            mesh: devices over which the results are replicated, which lets every process read
                them; None: the results stay on the arguments' device.
        """
        self._model = model
        self._strongest = strongest
        options = {} if mesh is None else {"out_shardings": sharding.replicated(mesh)}
        self._program = jax.jit(self._heat_maps, **options)

    def __call__(
        self,
        variables: Any,
        references: Any,
        targets: Any | None,
        tokens: Any | None,
        lengths: Any | None,
    ) -> tuple[HeatMaps, scoring.ComposedQuery]:
        """Make the heat maps of B queries.

        Args:
            variables: the model's variables.
            references: pictures or features, as `CMAP.encode_references` takes them.
            targets: one picture a query in the same form; None: without targets.
            tokens: [B, T] int32; None for references alone, where the method composes them.
            lengths: [B] int32; None where there are no tokens.

        Returns:
            The heat maps and the composed queries.
        """
        return self._program(variables, references, targets, tokens, lengths)

    def _heat_maps(
        self, variables: Any, references: Any, targets: Any, tokens: Any, lengths: Any
    ) -> tuple[HeatMaps, scoring.ComposedQuery]:
        def apply(*arrays: Any, method: str) -> Any:
            return self._model.apply(variables, *arrays, method=method)

        text = None if tokens is None else apply(tokens, lengths, method="encode_text")

        def compose(pyramid: jax.Array) -> scoring.ComposedQuery:
            return apply(pyramid, text, method="compose").replace(preservation=None)

        def gallery(maps: Mapping[str, jax.Array]) -> jax.Array:
            return apply(apply(maps, method="embed_maps"), method="embed_gallery")

        maps = apply(references, method="image_maps")
        pyramid = apply(maps, method="embed_maps")
        query = compose(pyramid)
        target_heat = None
        if targets is None:

            def reference_score(maps: Mapping[str, jax.Array]) -> jax.Array:
                return contributions(query, gallery(maps), hold_norms=True)

        else:
            target_maps = apply(targets, method="image_maps")
            embedded = gallery(target_maps)
            reads = _reads_reference(query, compose(-pyramid))

            def reference_score(maps: Mapping[str, jax.Array]) -> jax.Array:
                as_query = contributions(compose(apply(maps, method="embed_maps")), embedded)
                return jnp.where(reads, as_query, contributions(query, gallery(maps)))

            def target_score(maps: Mapping[str, jax.Array]) -> jax.Array:
                return contributions(query, gallery(maps))

            weights = self._patch_weights(variables, targets)
            target_heat = self._image_heat(target_score, target_maps, weights)
        weights = self._patch_weights(variables, references)
        reference_heat = self._image_heat(reference_score, maps, weights)
        heat = HeatMaps(reference_heat, target_heat, query.branch_names, query.levels)
        return heat, query

    def _image_heat(self, score: Any, maps: Mapping[str, jax.Array], rollout: Any) -> ImageHeat:
        """Return the heat maps of pictures, given their maps and how these are scored.

        Args:
            score: from maps to the contributions [K, L, B, D].
            maps: each level's map or vector.
            rollout: weights of the patches, or None.
        """
        parts, pull_back = jax.vjp(score, dict(maps))
        branches, _, _, width = parts.shape
        values, dimensions = jax.lax.top_k(parts, min(self._strongest, width))  # [K, L, B, k]
        one_hot = jnp.moveaxis(jax.nn.one_hot(dimensions, width), 3, 0)  # [k, K, L, B, D]
        wanted = jnp.concatenate([jnp.ones((1, *parts.shape)), one_hot])
        # A cotangent for each branch and map: those of the other branches are 0.
        wanted = wanted * jnp.eye(branches)[:, None, :, None, None, None]
        gradients = jax.vmap(jax.vmap(pull_back))(wanted.astype(parts.dtype))[0]
        noise = _NOISE * jnp.abs(parts).sum(-1)[..., None, None]  # [K, L, B, 1, 1]
        heat = {}
        for number, level in enumerate(self._model.levels):
            if maps[level].ndim == 4:
                cam = grad_cam(maps[level], gradients[level])
                is_seen = jnp.max(cam, axis=(-2, -1), keepdims=True) > noise[:, number, None]
                heat[level] = jnp.where(is_seen, cam, 0)
        return ImageHeat(
            heat=heat,
            scores=parts.sum(-1),
            dimensions=jnp.moveaxis(dimensions, -1, 2),
            contributions=jnp.moveaxis(values, -1, 2),
            rollout=rollout,
        )

    def _patch_weights(self, variables: Any, images: Any) -> Float[Array, "B h w"] | None:
        """Return the attention roll-out of pictures; None for features and other encoders."""
        image = self._model.image
        patch_weights = IMAGE_ENCODERS[image["family"]].patch_weights
        if patch_weights is None or isinstance(images, Mapping):
            return None
        _, kept = self._model.apply(
            variables, images, method="encode_references", mutable=["intermediates"]
        )
        (tokens,) = kept["intermediates"]["image_encoder"]["backbone"][ENTERING]
        tower = IMAGE_ENCODERS[image["family"]].build(
            image["settings"], image["frozen"], "none", self._model.dtype
        )
        params = variables["params"]["image_encoder"]["backbone"]
        rows = images.shape[1] // tower.patch
        return patch_weights(tower, params, tokens).reshape(len(images), rows, -1)


def _reads_reference(
    query: scoring.ComposedQuery, other: scoring.ComposedQuery
) -> Float[Array, "K 1 1 1"]:
    """Tell which branches differ between queries of the same texts and other references."""
    pairs = zip(query.branches, other.branches, strict=True)
    differ = [jnp.any(a.numerator != b.numerator) for a, b in pairs]
    return jnp.stack(differ)[:, None, None, None]


def grad_cam(
    maps: Float[Array, "B h w C"], gradients: Float[Array, "*M B h w C"]
) -> Float[Array, "*M B h w"]:
    """Weight each channel of a map by its mean gradient, add them up, and keep what is positive.

    See docs/method.md, section 13.
    """
    weights = jnp.mean(gradients, axis=(-3, -2))
    products = jnp.einsum("...bc,bhwc->...bhw", weights, maps, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(products, 0)


def explain(
    trained: Trained,
    references: Sequence[Any],
    texts: Sequence[str | Sequence[str]] | None,
    targets: Sequence[Any] | None = None,
    strongest: int = STRONGEST,
) -> HeatMaps:
    """Make the heat maps of B queries with a trained model, on the host.

    Args:
        trained: the model.
        references: B images, as `Trained.encode_images` takes them.
        texts: B texts, as `Trained.encode_text` takes them; None for images alone.
        targets: B images, one a query; None: without.
        strongest: number of dimensions with heat maps of their own.

    Raises:
        ImageReadError: an image cannot be read.
        ValueError: no images, numbers of images and texts that differ, a text that is missing or
            too long, or a negative number of dimensions.
    """
    check_halves(trained.config.model.variant, True, texts is not None)
    counts = {len(references), *(len(x) for x in (texts, targets) if x is not None)}
    if len(counts) > 1 or 0 in counts:
        raise ValueError("give one reference or more, and as many texts and targets")
    if strongest < 0:
        raise ValueError(f"strongest must not be negative, not {strongest}")
    tokens, lengths = (None, None) if texts is None else trained.tokenize(texts)

    def read(images: Sequence[Any]) -> np.ndarray:
        return np.stack([preprocess_image(image, trained.preprocessing) for image in images])

    heat, _ = HeatPrograms(trained.model, strongest)(
        trained.variables,
        read(references),
        None if targets is None else read(targets),
        tokens,
        lengths,
    )
    return jax.tree.map(np.asarray, heat)


__all__ = [
    "STRONGEST",
    "HeatMaps",
    "HeatPrograms",
    "ImageHeat",
    "contributions",
    "explain",
    "grad_cam",
]
