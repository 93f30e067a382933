"""Text is wrapped to a width, whatever the text is."""

import itertools

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from cmap_jax.visualization.lettering import leading, wrap, write


def _width(line: str, size: int) -> float:
    return ImageFont.load_default(size).getlength(line)


def test_words_fill_the_lines():
    text = "is longer and darker and has a much wider neck"
    lines = wrap(text, 15, 120, 10)
    assert " ".join(lines) == text
    assert len(lines) == 3
    for line, following in itertools.pairwise(lines):
        assert _width(line, 15) <= 120 < _width(f"{line} {following.split()[0]}", 15)


def test_too_many_lines_end_in_an_ellipsis():
    lines = wrap("word " * 100, 15, 120, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert not lines[0].endswith("…")
    assert all(_width(line, 15) <= 120 for line in lines)


def test_long_words_are_broken_and_lose_nothing():
    lines = wrap("a" * 100 + " b", 15, 120, 99)
    assert "".join(lines) == "a" * 100 + " b"
    assert all(_width(line, 15) <= 120 for line in lines)
    # At a mark where there is one, but never where the word fits on a line by itself.
    assert wrap("dresses/009b3c31fb62/0.jpeg", 12, 150, 2) == ["dresses/009b3c31fb62/", "0.jpeg"]
    assert wrap("the one with a long-sleeve", 15, 160, 2) == ["the one with a", "long-sleeve"]


def test_white_space():
    assert wrap("", 15, 100, 3) == wrap(" \n\t ", 15, 100, 3) == []
    assert wrap(" is\n\tred ", 15, 100, 3) == ["is red"]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("café crème", "cafe creme"),
        ("v\N{EN DASH}neck \N{EM DASH} red", "v-neck - red"),
        ("a\0b\x07\N{ZERO WIDTH JOINER}c", "abc"),
        ("\ud83d half a pair", "half a pair"),
        ("裙子", "裙子"),
        ("한국어", "한국어"),
    ],
)
def test_what_the_font_lacks(text, drawn):
    assert wrap(text, 15, 300, 1) == [drawn]


def test_a_line_is_drawn_below_the_other():
    def ink(*arguments, **options):
        sheet = Image.new("RGB", (100, 100), "white")
        write(ImageDraw.Draw(sheet), *arguments, (0, 0, 0), **options)
        return ImageChops.invert(sheet).getbbox()

    one, two = ink((40, 10), ["AA"], 15), ink((40, 10), ["AA", "AA"], 15)
    assert one[:3] == two[:3]
    assert two[3] - one[3] == leading(15)
    middle = ink((40, 10), ["AA"], 15, anchor="ma")
    assert (middle[0] + middle[2]) / 2 == pytest.approx(40, abs=1)
