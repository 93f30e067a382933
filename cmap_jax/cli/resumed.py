"""Remedies that a run which continues would refuse, and the words that say so."""

import os

from cmap_jax.config_fields import FIELDS, Kind
from cmap_jax.remedies import named_fields

_ANOTHER = "--workdir="  # a message with this flag speaks of another folder already


def for_resumed_run(message: str, workdir: str | os.PathLike) -> str:
    """Return an error's message, with a sentence on those of its remedies that need a new folder.

    A run that has written its config into its folder continues with that config alone. A remedy
    that sets another field than an environment's is refused there.

    Args:
        message: text for the user, perhaps with --config flags.
        workdir: the folder of the run that the message ends; it may not exist.
    """
    named = (name for name in named_fields(message) if name in FIELDS)
    fixed = [name for name in named if FIELDS[name].kind >= Kind.RUN]
    if not fixed or _ANOTHER in message or not _holds_a_run(workdir):
        return message
    names = " and ".join(f"config.{name}" for name in fixed)
    return (
        f"{message.rstrip('.')}. {os.fspath(workdir)} holds a run, which continues with its own "
        f"{names} alone: for another value give a new folder too, --workdir=..."
    )


def _holds_a_run(workdir: str | os.PathLike) -> bool:
    # Imported here since it loads JAX, which takes seconds.
    from cmap_jax.workdir.description import read_config

    try:
        return read_config(workdir) is not None
    except (OSError, ValueError):  # the error in hand may be about this file
        return False
