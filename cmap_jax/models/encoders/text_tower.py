"""Settings, building and checks: the parts that the text towers have in common.

See docs/method.md, section 9.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax.typing import DTypeLike

from cmap_jax.models.encoders.entry import Setting
from cmap_jax.models.encoders.transformer import TOWER_SETTINGS, Tower, check_heads
from cmap_jax.models.rematerialization import Remat

# Settings that each text tower of each family has.
TEXT_SETTINGS: Mapping[str, Setting] = {
    **TOWER_SETTINGS,
    "positions": Setting(least=1),
    "projection": Setting(least=1),
}
# Its modules and parameters, all of which are pretrained.
FROZEN = ("token_embedding", "position_embedding", "blocks", "final_norm", "projection")


def text_builder(tower: type[Tower]) -> Callable[..., Tower]:
    """Return the ``build`` of a text tower's entry.

    Args:
        tower: takes each setting as a keyword argument of the same name, and ``vocabulary_size``.
    """

    def build(
        settings: Mapping[str, Any],
        vocabulary_size: int,
        embed_dim: int,
        remat: Remat,
        dtype: DTypeLike,
    ) -> Tower:
        return tower(**settings, vocabulary_size=vocabulary_size, remat=remat, dtype=dtype)

    return build


def check_text(family: str, model_config: Any) -> None:
    """Refuse a text tower that cannot be built, or whose feature, which has no head, does not fit.

    Args:
        family: name of the sub-config.
        model_config: ``config.model``.

    Raises:
        ValueError: names the fields.
    """
    settings, field = model_config.text[family], f"config.model.text.{family}"
    check_heads(settings, field)
    if model_config.embed_dim != settings.projection:
        raise ValueError(
            f"config.model.embed_dim must be {settings.projection}, the value of "
            f"{field}.projection, not {model_config.embed_dim}"
        )


def check_text_width(tokens: int, positions: int) -> None:
    """Refuse an array of more tokens than a text tower has positions.

    Raises:
        ValueError: gives both numbers.
    """
    if tokens > positions:
        raise ValueError(f"texts have {tokens} tokens, and the text encoder {positions} positions")
