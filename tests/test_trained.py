"""A trained model in use: what it says of words that it does not know."""

import logging
import time

import numpy as np
import pytest
from small import write_workdir

import cmap_jax
from cmap_jax.processing.tokenizer import Vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Its vocabulary is "is red longer has a no"."""
    return cmap_jax.load(write_workdir(tmp_path_factory.mktemp("run") / "w", "cirr", "cirr/val"))


def _warnings(caplog, trained, texts) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained.encode_text(texts)
    return [record.getMessage() for record in caplog.records]


def test_unknown_words_are_named_once_a_call(trained, caplog):
    texts = ["is redd", ("has a zebra", "is redd and lnger"), "no redd"]
    (warning,) = _warnings(caplog, trained, texts)
    # The most frequent first, each with the nearest that is known.
    assert warning.endswith('if any: "redd": red, "zebra", "and", "lnger": longer')
    assert len(_warnings(caplog, trained, texts)) == 1  # the next call says it again
    assert _warnings(caplog, trained, ["is red", ("is longer", ""), ""]) == []


def test_many_unknown_words_are_counted(trained, caplog):
    (warning,) = _warnings(caplog, trained, [" ".join(f"qx{'z' * i}" for i in range(1, 14))])
    assert warning.count('"qxz') == 10
    assert warning.endswith(", and 3 more")


def test_texts_that_lose_all_words_are_named(trained, caplog):
    (warning,) = _warnings(caplog, trained, ["红色", ("is red", "!")])
    assert warning == (
        "no word is left of 2 texts, such as '红色': only the letters a to z are read"
    )


def test_the_nearest_of_many_words_is_found_quickly():
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = {"".join(rng.choice(letters, rng.integers(3, 12))) for _ in range(5000)}
    vocabulary = Vocabulary.build([*sorted(words), "sleeveless"])
    started = time.process_time()
    assert vocabulary.nearest("sleevless") == "sleeveless"
    assert vocabulary.nearest("qqqqqqqqqqqqqqq") is None
    assert time.process_time() - started < 1
