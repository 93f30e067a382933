"""Composers turn a reference's pyramid and a text into a `ComposedQuery`.

See docs/method.md, section 1, variants.

What differs between the methods of the field is written here and nowhere else. A new method is a
composer: here with a line in COMPOSERS, or in any package that Python can import, without a change
to this library. The second way in full, as ``my_package/my_module.py``:

    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from cmap_jax.numerics import l2_normalize
    from cmap_jax.scoring import Branch, ComposedQuery


    class GatedSum(nn.Module):
        levels: tuple[str, ...] = ("high", "mid", "low")  # or ("high",)
        dtype: jax.typing.DTypeLike = jnp.float32

        @nn.compact
        def __call__(self, pyramid, text, *, train):  # [L, B, D] and [B, D] float32
            gate = nn.Dense(text.shape[-1], dtype=self.dtype)(text)
            gate = nn.Dropout(0.1, deterministic=not train)(nn.sigmoid(gate))
            composed = l2_normalize(gate * pyramid + text)  # [L, B, D]
            return ComposedQuery((Branch(composed),), None, ("gated",), self.levels)

It is chosen by its module and name, in a config or on the command line:

    python main.py --config=configs/garments.py --config.model.variant=my_package.my_module:GatedSum

The workdir keeps that name, so that evaluation and `cmap_jax.load` import the module again: it must
be installed, or its folder must be on PYTHONPATH. A composer keeps to this contract, as far as
`check_composer` and `check_query` can tell:

- It is a `flax.linen.Module` that can be built with ``dtype=`` alone, the dtype of its layers'
  products; all its other fields have defaults. ``levels`` (default: high, mid and low) names the
  levels that it is given and scores. ``reads_text = False`` says that it ignores the text,
  ``reads_image = False`` that it ignores the reference, and ``optional = ("text",)`` that texts may
  be missing. ``on_features = True`` asks for the features that the encoders themselves project, not
  normalised; see `Variant`.
- It is called with the references' pyramid [L, B, D], the texts [B, D] and ``train=``. Row b of the
  result belongs to row b of both.
- It returns a `ComposedQuery` with one `Branch` or more, each [L, B, D] or, the same at every
  level, [1, B, D], float32 or better; with as many different ``branch_names``; and with ``levels``.
- Its parameters and ``batch_stats`` are trained, saved and restored. In training it may draw random
  numbers from the stream "dropout"; in evaluation there is none. The stream's key depends on the
  seed and the step alone, and a composer is given the whole batch: neither micro-batches, the
  number of devices nor a resumed run change what it draws.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cmap_jax.models.encoders.entry import Setting, check_settings
from cmap_jax.models.feature_sum import FeatureSum
from cmap_jax.models.image_encoder import LEVELS
from cmap_jax.models.layers import BatchNorm, Dense
from cmap_jax.models.magiclens import MagicLens
from cmap_jax.models.plug_ins import check_composer, import_composer
from cmap_jax.numerics import at_least_float32, l2_normalize
from cmap_jax.scoring import Branch, ComposedQuery, PreservationInputs

_PLUG_IN = re.compile(r"(?P<module>\w+(?:\.\w+)*):(?P<name>\w+)")


class Attention(nn.Module):
    """Attention over the embedding's dimensions, ``softmax_D(W2 relu(W1 m + b1) + b2)``.

    Attributes:
        dtype: dtype of the linear layers' products.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Return weights that sum to one over D, float32."""
        hidden = nn.relu(Dense(text.shape[-1], self.dtype, name="hidden")(text))
        logits = Dense(text.shape[-1], self.dtype, name="out")(hidden)
        return nn.softmax(at_least_float32(logits), axis=-1)


def modified_branch(transform: Float[Array, "B D"], attention: Float[Array, "B D"]) -> Branch:
    """Return the branch of ``<T, l2(A_m * t)>``, the same at every level.

    See docs/method.md, section 1, scores.
    """
    return Branch((transform * attention)[None], attention[None])


def preserved_branch(pyramid: Float[Array, "L B D"], attention: Float[Array, "B D"]) -> Branch:
    """Return the branch of ``<l2(A_p * r), l2(A_p * t)>`` (docs/method.md, section 1, scores)."""
    # Level by level, so that the attention's gradient is a sum of arrays. As a reduction over a
    # leading axis of three, it would take XLA's CPU back end a third of the time of score and loss.
    numerators = [l2_normalize(attention * level) * attention for level in pyramid]
    return Branch(jnp.stack(numerators), attention[None])


class AttentionComposer(nn.Module):
    """CMAP's composition: a modified and a preserved part.

    See docs/method.md, section 1, attention and scores.

    ``mod_i = <T, l2(A_m * t_i)>`` and ``pres_i = <l2(A_p * r_i), l2(A_p * t_i)>``, where A_m and
    A_p are the modification and the preservation attention and ``T = l2(W_t m + b_t)``. With the
    high level alone it is ARTEMIS.

    Attributes:
        parts: "modified", "preserved" or both, in this order; one branch each.
        levels: names of the pyramid's levels, high to low.
        self_contrastive: whether the preservation loss applies.
        dtype: dtype of the linear layers' products.
    """

    parts: tuple[str, ...] = ("modified", "preserved")
    levels: tuple[str, ...] = LEVELS
    self_contrastive: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Float[Array, "L B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        branches, transform, preservation = [], None, None
        if "modified" in self.parts:
            transform = l2_normalize(Dense(text.shape[-1], self.dtype, name="transform")(text))
            attention = Attention(self.dtype, name="modification_attention")(text)
            branches.append(modified_branch(transform, attention))
        if "preserved" in self.parts:
            attention = Attention(self.dtype, name="preservation_attention")(text)
            branches.append(preserved_branch(pyramid, attention))
            if self.self_contrastive:
                preservation = PreservationInputs(text, transform, attention)
        return ComposedQuery(tuple(branches), preservation, self.parts, self.levels)


class PlainComposer(nn.Module):
    """A composition without parameters: one branch, ``<n_i, t_i>``.

    Attributes:
        compose: maps (pyramid [L, B, D], text [B, D]) to n, [L, B, D] or [1, B, D].
        branch_name: the branch's name in a query's ``branch_names``.
        levels: names of the pyramid's levels, high to low.
        dtype: unused; every composer takes it.
    """

    compose: Callable[[jax.Array, jax.Array], jax.Array]
    branch_name: str
    levels: tuple[str, ...] = LEVELS
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, pyramid: Float[Array, "L B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        branches = (Branch(self.compose(pyramid, text)),)
        return ComposedQuery(branches, None, (self.branch_name,), self.levels)


class TIRG(nn.Module):
    """Text-image residual gating (Vo et al., CVPR 2019), on the high level.

    See docs/method.md, section 1, variants.

    ``l2(a1 * sigmoid(gate(x)) * r + a2 * res(x))`` with ``x = [r, m]``.

    Attributes:
        levels: names of the pyramid's levels.
        dtype: dtype of the linear layers' products.
    """

    levels: tuple[str, ...] = ("high",)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Float[Array, "1 B D"], text: Float[Array, "B D"], *, train: bool
    ) -> ComposedQuery:
        """Compose B queries."""
        reference, width = pyramid[0], text.shape[-1]
        joined = jnp.concatenate([reference, text], axis=-1)

        def norm_relu(name: str) -> jax.Array:
            norm = BatchNorm(dtype=self.dtype, name=name)
            return nn.relu(norm(joined, use_batch_statistics=train))

        gate = Dense(width, self.dtype, name="gate")(norm_relu("gate_norm"))
        hidden = nn.relu(Dense(2 * width, self.dtype, name="res_hidden")(norm_relu("res_norm")))
        residual = Dense(width, self.dtype, name="res_out")(hidden)
        mix = self.param("mix", lambda _, shape: jnp.asarray([1.0, 10.0]).reshape(shape), (2,))
        composed = mix[0] * nn.sigmoid(at_least_float32(gate)) * reference + mix[1] * residual
        return ComposedQuery(
            (Branch(l2_normalize(composed)[None]),), None, ("composed",), self.levels
        )


def _late_fusion(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return l2_normalize(pyramid + text)


def _text_only(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return text[None]


def _image_only(pyramid: jax.Array, text: jax.Array) -> jax.Array:
    return pyramid


class Halves(NamedTuple):
    """The halves of a query that a method makes something of.

    Attributes:
        image: whether a reference image alone is a query.
        text: whether a text alone is a query.
        both: whether image and text together are a query in which both play a part.
    """

    image: bool
    text: bool
    both: bool


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named method: how to build its composer, and what the composer reads.

    Attributes:
        build: returns the composer; called with ``dtype=`` and, where there are settings,
            ``settings=``.
        levels: levels of the pyramid that it scores, high to low.
        reads_text: False where the text plays no part: no text encoder is made.
        reads_image: False where the reference plays no part.
        on_features: whether the composer is given the features that the encoders project, without
            heads of the model and not normalised. An image's embedding in a gallery is then the
            numerator of its query without a text, which is one branch without a weight.
        without_text: what stands for a text that is missing: the zero vector, or the feature of
            the empty text.
        optional: halves of a query that may be missing, of "image" and "text".
        captions: caption policy under which the method was published, where a data set lets choose
            one; see `cmap_jax.protocols.Protocol`.
        settings: the fields of ``config.model.<name>``, where the method has constants of its own.
        check: called with ``config.model``; raises ValueError for what no single field shows.
    """

    build: Callable[..., nn.Module]
    levels: tuple[str, ...] = LEVELS
    reads_text: bool = True
    reads_image: bool = True
    on_features: bool = False
    without_text: Literal["zero", "empty"] = "zero"
    optional: tuple[str, ...] = ()
    captions: Literal["one", "concept"] = "one"
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], None] = lambda model_config: None

    @property
    def takes(self) -> "Halves":
        """The halves that make a query."""
        return Halves(
            image="text" in self.optional or not self.reads_text,
            text="image" in self.optional or not self.reads_image,
            both=self.reads_image and self.reads_text,
        )


def _attention(**settings) -> Callable[..., nn.Module]:
    return lambda dtype: AttentionComposer(dtype=dtype, **settings)


def _plain(compose: Callable, branch_name: str) -> Callable[..., nn.Module]:
    return lambda dtype: PlainComposer(compose, branch_name, dtype=dtype)


def _feature_sum(settings: Mapping[str, Any], dtype: DTypeLike) -> FeatureSum:
    return FeatureSum(settings["text_weight"], settings["normalize"], dtype=dtype)


def _magiclens(settings: Mapping[str, Any], dtype: DTypeLike) -> MagicLens:
    return MagicLens(settings["layers"], settings["heads"], dtype=dtype)


def _check_magiclens(model_config: Any) -> None:
    heads, width = model_config.magiclens.heads, model_config.embed_dim
    if width % heads:
        raise ValueError(
            f"config.model.magiclens.heads={heads} must divide config.model.embed_dim={width}"
        )


_HIGH = LEVELS[:1]

COMPOSERS = {
    "cmap": Variant(_attention()),
    "em_only": Variant(_attention(parts=("modified",), self_contrastive=False)),
    "is_only": Variant(_attention(parts=("preserved",))),
    "artemis": Variant(_attention(levels=_HIGH, self_contrastive=False), levels=_HIGH),
    "late_fusion": Variant(_plain(_late_fusion, "fused")),
    "text_only": Variant(_plain(_text_only, "text"), reads_image=False, optional=("image",)),
    "image_only": Variant(_plain(_image_only, "image"), reads_text=False, optional=("text",)),
    "tirg": Variant(lambda dtype: TIRG(dtype=dtype), levels=_HIGH),
    "sum": Variant(
        _feature_sum,
        levels=_HIGH,
        on_features=True,
        optional=("image", "text"),
        settings={
            "text_weight": Setting(least=0, most=1_000_000),
            "normalize": Setting(choices=(False, True)),
        },
    ),
    "magiclens": Variant(
        _magiclens,
        levels=_HIGH,
        on_features=True,
        without_text="empty",
        optional=("text",),
        captions="concept",
        settings={"layers": Setting(least=1), "heads": Setting(least=1)},
        check=_check_magiclens,
    ),
}


def find_variant(name: str) -> Variant:
    """Return the method that ``config.model.variant`` names.

    Args:
        name: a key of COMPOSERS; or ``"my_package.my_module:MyComposer"``, a class in a module,
            which is imported.

    Raises:
        ValueError: there is no such method, module or class, or the class is no composer.
    """
    if name in COMPOSERS:
        return COMPOSERS[name]
    plug_in = _PLUG_IN.fullmatch(name)
    if plug_in is None:
        raise ValueError(
            f"config.model.variant must be one of {', '.join(COMPOSERS)}, or the module and the "
            f"name of a composer, such as my_package.my_module:MyComposer; got {name!r}"
        )
    composer = import_composer(**plug_in.groupdict())
    check_composer(composer)
    traits = ("levels", "reads_text", "reads_image", "on_features", "without_text", "optional")
    own = {name: getattr(composer, name) for name in traits if hasattr(composer, name)}
    return Variant(composer, **own)


def variant_settings(model_config: Any) -> dict[str, Any]:
    """Return the part ``config.model.<variant>`` of a config's method; empty where it has none.

    Raises:
        ValueError: no such method, or a field that is missing, unknown or impossible; names it.
    """
    name = model_config.variant
    fields = find_variant(name).settings
    return check_settings(model_config, name, fields, "config.model") if fields else {}


def check_query(
    query: Any, pyramid: jax.Array, levels: tuple[str, ...], composer: nn.Module
) -> None:
    """Refuse a composer's result that cannot be scored.

    Only types and shapes are checked, so that a compiled program holds no part of the check.

    Args:
        query: result of the composer's call.
        pyramid: references that the composer was given, [L, B, D].
        levels: names of the pyramid's levels, high to low.
        composer: module that was called; the message names its class.

    Raises:
        ValueError: it breaks the contract of this module; says where.
    """
    count, batch, width = pyramid.shape

    def require(condition: bool, fault: str) -> None:
        if not condition:
            raise ValueError(
                f"the composer {type(composer).__name__} must return a ComposedQuery of "
                f"[{count}, {batch}, {width}] or [1, {batch}, {width}] float32 branches, with a "
                f"name for each branch and levels={levels}, but {fault}"
            )

    def check_array(array: Any, shapes: list[tuple[int, ...]], name: str) -> None:
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        require(shape is not None and dtype is not None, f"{name} is {_kind(array)}")
        require(tuple(shape) in shapes, f"{name} is {list(shape)}")
        is_wide = dtype in (jnp.float32, jnp.float64)
        require(is_wide, f"{name} is {dtype} (see cmap_jax.numerics.at_least_float32)")

    require(isinstance(query, ComposedQuery), f"returned {_kind(query)}")
    require(
        isinstance(query.branches, tuple) and len(query.branches) > 0,
        f"its branches are {_kind(query.branches)}, not a tuple of one Branch or more",
    )
    per_level = [(count, batch, width), (1, batch, width)]
    for i, branch in enumerate(query.branches):
        require(isinstance(branch, Branch), f"branches[{i}] is {_kind(branch)}")
        check_array(branch.numerator, per_level, f"branches[{i}].numerator")
        if branch.weight is not None:
            check_array(branch.weight, per_level, f"branches[{i}].weight")
    names = query.branch_names
    require(
        isinstance(names, tuple)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names) == len(query.branches),
        f"its {len(query.branches)} branches have the branch_names {names!r}",
    )
    require(query.levels == levels, f"its levels are {query.levels!r}")
    if query.preservation is None:
        return
    inputs = query.preservation
    require(isinstance(inputs, PreservationInputs), f"its preservation is {_kind(inputs)}")
    for field in ("text", "modification", "attention"):
        array = getattr(inputs, field)
        if array is not None or field != "modification":
            check_array(array, [(batch, width)], f"preservation.{field}")


def _kind(value: Any) -> str:
    if isinstance(value, tuple) and not value:
        return "an empty tuple"
    return "None" if value is None else f"a {type(value).__name__}"
