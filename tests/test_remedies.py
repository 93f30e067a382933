"""Remedies name the flags of the command at hand."""

import pytest

from cmap_jax.remedies import OTHERS, spelled

SPELLING = {
    "data.directory": "--dir",
    "data.image_directory": """--config='{"images": "{}"}'""",
    "data.missing_images=skip": "--skip-unusable",
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set --config.data.directory to it", "set --dir to it"),
        ("give --config.data.directory=/a/b, or", "give --dir /a/b, or"),
        ("give it (--config.data.directory=a.b).", "give it (--dir a.b)."),
        ("give the folder, --config.data.directory=...", "give the folder, --dir ..."),
        ("set --config.data.image_directory to", """set --config='{"images": "..."}' to"""),
        ("--config.data.image_directory=x: 3", """--config='{"images": "x"}': 3"""),
        ("with --config.data.missing_images=skip, or", "with --skip-unusable, or"),
        ("--config.data.missing_images=fail", "--config.data.missing_images=fail"),
        ("config.data.directory is not set", "config.data.directory is not set"),
        ("--config.data.directory_of_all=3", "--config.data.directory_of_all=3"),
        ("two\nlines: --config.data.directory", "two\nlines: --dir"),
    ],
)
def test_fields_become_flags(message, expected):
    assert spelled(message, SPELLING) == expected


def test_what_a_command_does_not_take_is_said_with_the_command_that_does():
    spelling = SPELLING | {OTHERS: "python main.py --workdir=..."}
    message = "lower --config.eval.batch_size=8 or --config.data.directory=x"
    assert spelled(message, spelling) == (
        "lower --config.eval.batch_size=8 (to python main.py --workdir=...) or --dir x"
    )
    assert spelled(message, {}) == message
