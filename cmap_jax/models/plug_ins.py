"""Composers of other packages, by the name of their module and class.

`cmap_jax.models.composers` states the contract that they keep to.
"""

import difflib
import importlib
import inspect
from typing import Any

import flax.linen as nn

from cmap_jax.models.encoders.entry import LEVELS


def import_composer(module: str, name: str) -> Any:
    """Return what a module holds under a name.

    Args:
        module: full name of the module, which is imported.
        name: of a class in it.

    Raises:
        ValueError: there is no such module, or it holds no such name.
    """
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module != missing and not module.startswith(f"{missing}."):
            raise  # a package that the module itself needs
        raise ValueError(
            f"config.model.variant={module}:{name}: there is no module {missing}; install it, or "
            "put its folder on PYTHONPATH"
        ) from error
    if not hasattr(imported, name):
        names = {other.casefold(): other for other in vars(imported)}
        near = difflib.get_close_matches(name.casefold(), names, n=1)
        hint = f"; did you mean {module}:{names[near[0]]}?" if near else ""
        raise ValueError(f"config.model.variant={module}:{name}: {module} has no {name}{hint}")
    return getattr(imported, name)


def check_composer(composer: Any) -> None:
    """Refuse a class that a model cannot use as its composer.

    Args:
        composer: class that a plug-in's name stands for.

    Raises:
        ValueError: it breaks the contract of `cmap_jax.models.composers`; says where.
    """

    def refuse(reason: str) -> None:
        name = f"{composer.__module__}:{composer.__qualname__}"
        raise ValueError(f"config.model.variant={name} is no composer: {reason}")

    if not inspect.isclass(composer):
        raise ValueError(f"config.model.variant names {composer!r}, which is no class")
    if not issubclass(composer, nn.Module):
        refuse("it must be a subclass of flax.linen.Module")
    try:
        inspect.signature(composer).bind(dtype=None)
    except TypeError as error:
        refuse(f"it must be built with dtype= alone, every other field having a default ({error})")
    try:
        inspect.signature(composer.__call__).bind(None, None, None, train=False)
    except TypeError as error:
        refuse(f"it must be called as composer(pyramid, text, train=...) ({error})")
    levels = getattr(composer, "levels", LEVELS)
    if levels not in (LEVELS, LEVELS[:1]):
        refuse(f"its levels must be {LEVELS} or {LEVELS[:1]}, not {levels!r}")
