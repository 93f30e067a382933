"""The plot of a sweep, and the tables of rows that cannot all be compared."""

import io

from fake_results import fake_results, random_ranks
from PIL import ImageChops

from cmap_jax.evaluation.over_seeds import SeededResults
from cmap_jax.processing.image_files import open_as
from cmap_jax.sweeps import plot, tables
from cmap_jax.sweeps.plan import Row
from cmap_jax.sweeps.results import RowRuns, summarize


def _row(name, most, seeds=(0, 1, 2), **more) -> RowRuns:
    runs = RowRuns(Row(name, name, ()), (0, 1, 2), SeededResults(name))
    for seed in seeds:
        runs.results.add(seed, fake_results(random_ranks(seed, most), **more))
        runs.seconds[seed] = 60.0 * (seed + 1)
    return runs


def _open(png):
    return open_as(io.BytesIO(png), ("PNG",)).convert("RGB")


def test_rows_that_cannot_be_compared_say_why():
    rows = summarize([_row("a", 40), _row("b", 20, seeds=(0,)), _row("c", 30, gallery="other")])
    assert [bool(row.differences) for row in rows] == [False, True, False]
    parts = tables.tables(rows)
    assert [len(part) for part in parts] == [4, 2]
    assert parts[0][1][-2:] == ["3", "2.0 ± 1.0"]
    assert parts[0][2][-2:] == ["1", "1.0"]
    assert parts[1][0][0] == "shoes, minus a"
    lines = tables.notes(rows, {"a": [], "b": [1, 2], "c": []})
    assert any("Differences from a over" in line for line in lines)
    assert "Not compared: a and c: these results cannot be compared:" in "\n".join(lines)
    assert lines[-1] == "Not complete: b, seeds 1, 2."
    text = tables.markdown([[["a|b"], ["c"]]], ["end."])
    assert text == "| a\\|b |\n| --- |\n| c |\n\nend.\n"
    # Without results of the first row there is nothing to compare with.
    rows = summarize([_row("a", 40, seeds=()), _row("b", 20)])
    assert [row.why_not for row in rows] == ["a and b have no seed in common"]
    assert summarize([_row("a", 40, seeds=())]) == []


def test_plot():
    rows = [_row("cmap", 40), _row("artemis, with a name of $more$ than forty letters", 20)]
    png = plot.draw(summarize(rows), "a sweep")
    assert png == plot.draw(summarize(rows), "a sweep")
    picture = _open(png)
    # Four panels side by side, with marks in the palette's blue.
    assert picture.width > 4 * 2.6 * 150
    blue = sum(c for c, color in picture.getcolors(2**20) if color == (0, 114, 178))
    assert blue > 500
    other = plot.draw(summarize([rows[0], _row("x", 21)]), "a sweep")
    assert ImageChops.difference(picture, _open(other).resize(picture.size)).getbbox()
    plot.draw(summarize(rows[:1]), "a single row")
