"""The caption policy under which a command evaluates a model, by the model's method.

See docs/method.md, section 5, CIRCO.
"""

import argparse

from cmap_jax.config_fields import FIELDS
from cmap_jax.models.composers import find_variant
from input_pipeline.registry import DATA_SETS, check_name


def add_captions(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """Add the argument ``--captions``, which stands for ``config.eval.captions``.

    Args:
        parser: the subcommand's parser.
        condition: begins the help, such as "with --workdir: "; may be empty.
    """
    parser.add_argument(
        "--captions",
        choices=FIELDS["eval.captions"].choices,
        help=f"{condition}texts of CIRCO's queries: the caption alone, or \"find {{concept}} but "
        '{caption}"; each has a protocol of its own. Default: concept for MagicLens, else one',
    )


def captions_for(data_set: str, variant: str, asked: str | None) -> str | None:
    """Return the caption policy to evaluate under; None where a data set offers no choice.

    Args:
        data_set: name of the data set.
        variant: ``config.model.variant``.
        asked: the user's choice; None: the one under which the method was published.

    Raises:
        ValueError: there is no such data set or method.
    """
    check_name(data_set)
    if asked is None and DATA_SETS[data_set].has_concepts:
        return find_variant(variant).captions
    return asked
