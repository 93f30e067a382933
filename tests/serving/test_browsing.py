"""Looking items up by words: the same positions as a plain search, in little memory."""

import random

import numpy as np
import pytest

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.serving import browsing
from cmap_jax.serving.keeping import Keeper


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
def test_rows_are_those_of_a_plain_search(monkeypatch, block):
    monkeypatch.setattr(browsing, "_BLOCK", block)
    rng = random.Random(0)
    letters = "abü語🙂 \ud800"
    items = [
        Item(f"{number}", "", {"x": "".join(rng.choices(letters, k=rng.randrange(12)))})
        for number in range(60)
    ]
    lines = browsing._Lines(items)
    texts = [browsing._line(item) for item in items]
    for words in ["a", "ab", "ü語", "🙂", " ", "\ud800", "5", "b" * 20, "x" * 4000, "1 · a"]:
        expected = [row for row, text in enumerate(texts) if words in text]
        rows = lines.rows_with(words)
        assert rows.tolist() == expected, words
        assert rows.dtype == np.int32
    assert browsing._Lines([]).rows_with("a").tolist() == []


def test_results_are_kept_up_to_a_number_of_bytes():
    made = []

    def make(key):
        return lambda: made.append(key) or key * 10

    keeper = Keeper(40, len)
    for key in ("a", "b", "c", "a", "d", "e", "a", "b"):
        assert keeper.get(key, make(key)) == key * 10
    assert made == ["a", "b", "c", "d", "e", "b"]
    assert keeper.get("large", lambda: "x" * 50) == "x" * 50  # is not kept
