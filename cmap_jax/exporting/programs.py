"""A model's encoders, composition and score as StableHLO, which run without this library.

    from jax import export
    from safetensors.numpy import load_file

    weights = load_file("model.safetensors")
    encode = export.deserialize(open("stablehlo/encode_images.jax_export", "rb").read()).call
    gallery = encode(weights, pixels)                    # uint8 [N, H, W, 3] -> float32 [L, N, D]

Each program takes any number of images, texts and queries, and is compiled for the platform on
which it is called. All but ``score`` take the tensors of ``model.safetensors`` as their first
argument, a dict by name. A query is a list of branches, each a dict with "numerator" and, where the
method weights its score, "weight"; see `cmap_jax.scoring.Branch`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from cmap_jax import scoring
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import find_variant
from cmap_jax.trained import Trained
from cmap_jax.workdir import tensors

PLATFORMS = ("cpu", "cuda", "tpu")
# Names of the programs, in the order in which they are used.
ENCODE_IMAGES, ENCODE_REFERENCES, ENCODE_TEXT = "encode_images", "encode_references", "encode_text"
COMPOSE, COMPOSE_IMAGE, COMPOSE_TEXT = "compose", "compose_image", "compose_text"
SCORE = "score"

_Query = list[dict[str, jax.Array]]


class _Program(NamedTuple):
    """A function to export.

    Attributes:
        function: takes and returns arrays in dicts and lists.
        shapes: of each argument's arrays but the weights', with letters for the sizes that vary.
        dtypes: of these arguments.
    """

    function: Callable[..., Any]
    shapes: tuple[str, ...]
    dtypes: tuple[Any, ...]


def export_programs(trained: Trained) -> dict[str, export.Exported]:
    """Return the programs of a model by name.

    The sizes that vary are ``b`` images, texts or queries, ``t`` tokens of the widest text and
    ``n`` images of a gallery.

    Returns:
        ``encode_images``: uint8 [b, H, W, 3] to a gallery's pyramid, float32 [L, b, D].
        ``encode_references``: the same to the composer's input, where it is another.
        ``encode_text``: token ids, int32 [b, t], and their lengths, int32 [b], to float32 [b, D];
        where the method reads the text.
        ``compose``: references [L, b, D] and texts [b, D] to queries; and ``compose_image`` and
        ``compose_text`` to queries of one half, where the method composes them.
        ``score``: queries and a gallery [L, n, D] to float32 [b, n]
        (docs/method.md, section 1, scores).

    Raises:
        ValueError: a part of the model depends on the number of rows; names the program.
    """
    weights = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in tensors.by_path(trained.variables).items()
    }
    programs = {
        name: _export(name, program.function, weights, *_arguments(program, trained.text_limit))
        for name, program in _model_programs(trained).items()
    }
    query = next(_query_of(programs[name]) for name in programs if name.startswith(COMPOSE))
    return {**programs, SCORE: _export_score(trained.model, query)}


def _model_programs(trained: Trained) -> dict[str, _Program]:
    """Return the functions of the weights, by name."""
    model, takes = trained.model, trained.takes
    side, width = trained.preprocessing.crop, trained.config.model.embed_dim
    pixels, text = (f"b, {side}, {side}, 3", jnp.uint8), (f"b, {width}", jnp.float32)
    pyramid = (f"{len(model.levels)}, b, {width}", jnp.float32)
    chosen = {ENCODE_IMAGES: _program(_method(model, "encode_images"), pixels)}
    if model.references_differ:
        chosen[ENCODE_REFERENCES] = _program(_method(model, "encode_references"), pixels)
    if find_variant(model.variant).reads_text:
        tokens = (("b, t", jnp.int32), ("b", jnp.int32))
        chosen[ENCODE_TEXT] = _program(_method(model, "encode_text"), *tokens)
    compose = _composition(model)
    if takes.both:
        chosen[COMPOSE] = _program(compose, pyramid, text)
    if takes.image:
        chosen[COMPOSE_IMAGE] = _program(lambda w, image: compose(w, image, None), pyramid)
    if takes.text:
        chosen[COMPOSE_TEXT] = _program(lambda w, text: compose(w, None, text), text)
    return chosen


def _program(function: Callable[..., Any], *arguments: tuple[str, Any]) -> _Program:
    shapes, dtypes = zip(*arguments, strict=True)
    return _Program(function, shapes, dtypes)


def _method(model: CMAP, name: str) -> Callable[..., jax.Array]:
    """Return a method of the model as a function of its tensors by path, and of arrays."""

    def apply(weights: Mapping[str, jax.Array], *arrays: jax.Array) -> jax.Array:
        return model.apply(tensors.nested(weights), *arrays, method=name)

    return apply


def _composition(model: CMAP) -> Callable[..., _Query]:
    """Return the composition as a function with a query of plain lists and dicts."""

    def compose(
        weights: Mapping[str, jax.Array], pyramid: jax.Array | None, text: jax.Array | None
    ) -> _Query:
        query = model.apply(tensors.nested(weights), pyramid, text, method="compose")
        return [
            {"numerator": branch.numerator}
            | ({} if branch.weight is None else {"weight": branch.weight})
            for branch in query.branches
        ]

    return compose


def _arguments(program: _Program, text_limit: int | None) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of a program's arguments, with symbols for the sizes that vary."""
    limits = [f"t <= {text_limit}"] if text_limit and any("t" in s for s in program.shapes) else []
    scope = export.SymbolicScope(limits)
    return [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for shape, dtype in zip(program.shapes, program.dtypes, strict=True)
    ]


def _export(name: str, function: Callable[..., Any], *arguments: Any) -> export.Exported:
    """Return a function as a program for all platforms."""
    try:
        return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    except Exception as error:  # a method's code may fail in any way on sizes that are symbols
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the program {name} cannot be exported for any number of rows: {reason} In its code "
            "take sizes from shapes, use jax.numpy on them and not numpy, and compare none with a "
            "number; or leave the programs out with --no-programs"
        ) from error


def _query_of(composition: export.Exported) -> _Query:
    """Return the shapes of the queries that an exported composition gives."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in composition.out_avals]
    return jax.tree.unflatten(composition.out_tree, shapes)


def _export_score(model: CMAP, query: _Query) -> export.Exported:
    """Return the score of queries of some shapes against any gallery, as a program."""
    rows = query[0]["numerator"].shape[1]  # the symbol b, in whose scope n is defined
    levels, width = len(model.levels), query[0]["numerator"].shape[2]
    gallery = export.symbolic_shape(f"{levels}, n, {width}", scope=rows.scope)

    def score(query: _Query, gallery: jax.Array) -> jax.Array:
        branches = tuple(scoring.Branch(**branch) for branch in query)
        return scoring.score(scoring.ComposedQuery(branches, levels=model.levels), gallery)

    return _export(SCORE, score, query, jax.ShapeDtypeStruct(gallery, jnp.float32))
