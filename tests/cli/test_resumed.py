"""Remedies that a run which continues would refuse say that they need a new folder."""

import json

import pytest

from cmap_jax.cli.resumed import for_resumed_run

_LOWER = "the loss is not finite. Try a lower --config.optimizer.learning_rate"


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has written its config."""
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    return tmp_path


def test_fields_of_the_run_need_a_new_folder(run):
    assert for_resumed_run(_LOWER, run) == (
        f"{_LOWER}. {run} holds a run, which continues with its own config.optimizer.learning_rate "
        "alone: for another value give a new folder too, --workdir=..."
    )
    two = "restore them, or --config.data.missing_images=skip, --config.train.non_finite=skip"
    assert "own config.data.missing_images and config.train.non_finite alone" in for_resumed_run(
        two, run
    )


@pytest.mark.parametrize(
    "message",
    [
        "no such folder; set --config.data.directory",  # an environment's field may change
        "choose another folder with --workdir=..., or --config.seed=0",
        "there is no field --config.of.another.kind",
        "the disk is full",
    ],
)
def test_other_messages_stay(run, message):
    assert for_resumed_run(message, run) == message


def test_a_new_run_may_be_given_any_field(tmp_path):
    assert for_resumed_run(_LOWER, tmp_path / "new") == _LOWER
    (tmp_path / "config.json").write_text("{")  # another error tells of it
    assert for_resumed_run(_LOWER, tmp_path) == _LOWER
