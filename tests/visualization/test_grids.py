"""Grids: the right picture at the right place, and no input that breaks one."""

import io

import numpy as np
import pytest
from PIL import Image, ImageChops

from cmap_jax.processing.images import ImageReadError
from cmap_jax.visualization import grids
from cmap_jax.visualization.grids import (
    RIGHT,
    SIDE,
    ResultRow,
    TripletRow,
    check_destination,
    results_grid,
    save,
    triplet_grid,
)

RED, BLUE, GOLD, PINK = (200, 0, 0), (0, 0, 200), (220, 180, 0), (250, 120, 200)


def _plain(colour, size=(40, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def _box(picture: Image.Image, colour) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of just this colour; the last two exclusive."""
    down, across = np.nonzero((np.asarray(picture) == colour).all(-1))
    return across.min(), down.min(), across.max() + 1, down.max() + 1


def _has(picture: Image.Image, colour) -> bool:
    return bool((np.asarray(picture) == colour).all(-1).any())


@pytest.fixture
def words(monkeypatch):
    """All lines that are written."""
    written = []
    original = grids.write

    def write(pen, place, lines, *arguments, **options):
        written.extend(lines)
        original(pen, place, lines, *arguments, **options)

    monkeypatch.setattr(grids, "write", write)
    return written


def test_triplets_stand_in_reading_order(words):
    row = TripletRow(_plain(RED), ("is blue",), [_plain(BLUE)], ("r.jpg", "b.jpg"), note="dress")
    other = TripletRow(_plain(GOLD), ("is pink",), [_plain(PINK)])
    picture = triplet_grid([row, other], "my data")
    assert picture.mode == "RGB"
    boxes = [_box(picture, colour) for colour in (RED, BLUE, GOLD, PINK)]
    assert [box[0] for box in boxes] == sorted(box[0] for box in boxes)
    assert len({box[1] for box in boxes}) == 1
    for left, top, right, bottom in boxes:
        # A line is drawn on the edge of the tile.
        assert (right - left, bottom - top) == (SIDE - 2, SIDE - 2)
    assert words[0] == "my data"
    assert {"reference", "text", "target", "“is blue”", "dress", "r.jpg", "b.jpg"} <= set(words)


def test_sizes():
    row = TripletRow(_plain(RED), ("is blue",), [_plain(BLUE)])
    one, two, three = (triplet_grid([row] * n, "") for n in (1, 2, 3))
    assert two.width > 2 * one.width - SIDE
    assert two.height == one.height
    assert three.width == two.width
    assert SIDE < three.height - two.height < 1.5 * SIDE
    wide = TripletRow(_plain(RED), ("is blue",), [_plain(BLUE)] * 3)
    pictures = [triplet_grid(rows, "") for rows in ([wide], [wide, row])]
    assert pictures[0].width == pictures[1].width  # one below the other
    assert 2 * SIDE < pictures[0].width - one.width < 2.5 * SIDE
    # Names take a line or two under all images, and never more.
    heights = [
        triplet_grid([TripletRow(_plain(RED), ("",), [_plain(BLUE)], (name, ""))], "").height
        for name in ("", "a", "a" * 30, "a" * 300)
    ]
    assert one.height == heights[0] < heights[1] < heights[2] == heights[3]


def test_images_are_padded_on_white_in_the_middle():
    tall, broad = _plain(RED, (30, 60)), _plain(BLUE, (600, 300))
    picture = triplet_grid([TripletRow(tall, ("",), [broad])], "")
    left, top, right, bottom = _box(picture, RED)
    assert right - left == pytest.approx(SIDE / 2, abs=2)
    assert bottom - top == pytest.approx(SIDE, abs=2)
    assert picture.getpixel((left - 5, top + 5)) == (255, 255, 255)
    left, top, right, bottom = _box(picture, BLUE)
    assert (right - left, bottom - top) == pytest.approx((SIDE, SIDE / 2), abs=2)
    assert (top + bottom) / 2 == pytest.approx((_box(picture, RED)[1] + SIDE / 2), abs=2)


def test_a_thin_image_is_drawn():
    picture = triplet_grid([TripletRow(_plain(RED, (1, 5000)), ("",), [_plain(BLUE)])], "")
    assert _box(picture, RED)[2] - _box(picture, RED)[0] == 1


@pytest.mark.parametrize("right", [0, 1, 2])
def test_the_frame_is_around_the_right_image(right):
    colours = [RED, BLUE, GOLD]
    results = [(_plain(colour), place == right) for place, colour in enumerate(colours)]
    picture = results_grid([ResultRow(_plain(PINK), ("a",), results, right)], "shoes")
    lefts = [_box(picture, colour)[0] for colour in (PINK, *colours)]
    assert lefts == sorted(lefts)  # the reference, then the best first
    frame, image = _box(picture, RIGHT), _box(picture, colours[right])
    for at, around, direction in zip(image, frame, (1, 1, -1, -1), strict=True):
        assert 4 <= (at - around) * direction <= 8
    for place, colour in enumerate(colours):
        if place != right:
            other = _box(picture, colour)
            assert other[2] <= frame[0] or other[0] >= frame[2]
    # Colour is not the only sign: a white tick stands in the corner of this image alone.
    corner = (image[2] - 22, image[1], image[2], image[1] + 22)
    assert _has(picture.crop(corner), (255, 255, 255))


def test_frames_of_several_rows_and_none(words):
    results = [(_plain(BLUE), True), (_plain(GOLD), False), (_plain(BLUE), True)]
    rows = [
        ResultRow(_plain(PINK), ("a",), results, 0),
        ResultRow(_plain(PINK), ("a",), [(_plain(GOLD), False)] * 3, 1036),
    ]
    picture = results_grid(rows, "shoes")
    frames, golds = _box(picture, RIGHT), _box(picture, GOLD)
    blues = _box(picture, BLUE)
    assert frames[0] < blues[0] < blues[2] < frames[2]
    # The second row has no frame.
    assert frames[3] < golds[3] - SIDE
    assert {"1", "2", "3", "shoes"} <= set(words)
    assert not _has(results_grid(rows[1:], "shoes"), RIGHT)


def test_rank_is_told_where_no_right_image_is_shown(words):
    def told(rank, *correct):
        words.clear()
        results = [(_plain(BLUE), c) for c in correct]
        results_grid([ResultRow(_plain(RED), ("a",), results, rank)], "")
        return [word for word in words if "rank" in word]

    assert told(36, False, False) == ["right one at rank 37"]
    assert told(1, False, True) == []
    assert told(None, False, False) == []


def test_a_tie_is_told_even_where_the_right_image_is_shown(words):
    words.clear()
    row = ResultRow(_plain(RED), ("a",), [(_plain(BLUE), True)], 9.5, tied=19)
    results_grid([row], "")
    assert "right one tied with 19, rank 10.5 on average" in " ".join(words)


def test_no_image_is_a_grey_tile_with_the_reason(tmp_path, words):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    encoded = io.BytesIO()
    _plain(RED, (64, 64)).save(encoded, "PNG")
    sources = {
        tmp_path / "nowhere.jpg": "missing",
        str(tmp_path / "nowhere.jpg"): "missing",
        tmp_path / "empty.jpg": "zero bytes",
        tmp_path / "text.jpg": "not an image: no known format",
        b"": "zero bytes",
    }
    for source, reason in sources.items():
        words.clear()
        picture = triplet_grid([TripletRow(source, ("is red",), [_plain(RED)])], "")
        assert reason in " ".join(words)
        assert not any(str(tmp_path) in word for word in words)
        # The tile is where the reference stands else.
        box = _box(triplet_grid([TripletRow(_plain(BLUE), ("is red",), [])], ""), BLUE)
        tile = picture.crop(box)
        assert tile.getpixel((1, 1)) == tile.getpixel((SIDE - 4, SIDE - 4)) == (232, 232, 232)
    words.clear()
    cut = encoded.getvalue()[:-30]
    triplet_grid([TripletRow(_plain(RED), ("is red",), [cut])], "")
    assert any(word.startswith("truncated") for word in words)
    given = ImageReadError("a link that leads out of the folder")
    triplet_grid([TripletRow(given, ("is red",), [_plain(RED)])], "")
    assert str(given) in " ".join(words)


CAPTIONS = [
    ("",),
    (),
    (" \n",),
    ("short", ""),
    ("long " * 500,),
    ("long " * 500, "as long " * 500),
    ("x" * 9_000,),
    ("裙子更长", "いろ 赤い 👗🏽👩\N{ZERO WIDTH JOINER}👧"),
    ("مرحبا أحمر", "שמלה"),
    ("a\nb\r\n\tc\0\x1b[31m",),
    ("\ud800 half a pair", "\N{COMBINING ACUTE ACCENT}" * 50),
    ("“quoted” & <b>bold</b> \\n %s {}",),
]


@pytest.mark.parametrize("captions", CAPTIONS, ids=range(len(CAPTIONS)))
def test_captions_stay_in_their_cell(captions):
    def draw(captions, note=""):
        row = TripletRow(_plain(RED), captions, [_plain(BLUE)], note=note)
        return triplet_grid([row], "")

    plain = draw(("a",))
    for note in ("", "right one at rank 37 " * 20):
        changed = ImageChops.difference(plain, draw(captions, note)).getbbox()
        left, top, right, bottom = changed
        red, blue = _box(plain, RED), _box(plain, BLUE)
        assert red[2] < left < right < blue[0]
        assert red[1] - 1 <= top < bottom <= red[3] + 1


def test_empty_captions_are_said_to_be_empty(words):
    for captions in ((), ("",), (" \n",)):
        words.clear()
        triplet_grid([TripletRow(_plain(RED), captions, [_plain(BLUE)])], "")
        assert words.count("(empty)") == 1
        assert "“”" not in words


def test_a_short_caption_leaves_its_room_to_the_other(words):
    long = "is a word " * 12
    triplet_grid([TripletRow(_plain(RED), (long, "is red"), [_plain(BLUE)])], "")
    assert "“is red”" in words
    assert not any("…" in word for word in words)
    triplet_grid([TripletRow(_plain(RED), (long * 9, long * 9), [_plain(BLUE)])], "")
    assert sum("…" in word for word in words) == 2


def test_odd_titles(words):
    row = TripletRow(_plain(RED), ("a",), [_plain(BLUE)])
    sizes = {triplet_grid([row], title).size for title in ("", "裙子\n" * 9, "long " * 900)}
    assert len(sizes) == 1
    assert words[-1] != ""
    assert any(word.startswith("long long") and word.endswith("…") for word in words)


def test_rows_without_targets(words):
    picture = triplet_grid([TripletRow(_plain(RED), ("a",), [])], "")
    assert _has(picture, RED)
    assert "target" not in words


def test_refusals():
    with pytest.raises(ValueError, match="no rows"):
        triplet_grid([], "")
    with pytest.raises(ValueError, match="no rows"):
        results_grid([], "")
    with pytest.raises(ValueError, match="1 names for 2 images"):
        triplet_grid([TripletRow(_plain(RED), ("a",), [_plain(BLUE)], names=("r",))], "")
    with pytest.raises(TypeError, match="from int"):
        triplet_grid([TripletRow(7, ("a",), [_plain(BLUE)])], "")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_the_same_rows_give_the_same_bytes(tmp_path, name):
    contents = []
    for folder in ("one", "two"):
        row = ResultRow(_plain(RED), ("is blue",), [(_plain(BLUE), True)], 0, ("r", "b"))
        save(results_grid([row], "shoes"), tmp_path / folder / name)
        assert [file.name for file in (tmp_path / folder).iterdir()] == [name]
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]
    with Image.open(tmp_path / "one" / name) as picture:
        assert picture.format == ("PNG" if name == "a.png" else "JPEG")
        picture.load()


def test_a_picture_is_replaced_or_stays(tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    save(_plain(RED), out)
    save(_plain(BLUE), out)
    with Image.open(out) as picture:
        assert picture.getpixel((0, 0)) == BLUE

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save(_plain(RED), out)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [out]
    with Image.open(out) as picture:
        assert picture.getpixel((0, 0)) == BLUE


def test_destinations(tmp_path):
    for name in ("grid.gif", "grid", "grid.png.tmp", ".png"):
        for refuse in (check_destination, lambda path: save(_plain(RED), path)):
            with pytest.raises(ValueError, match=r"must end in \.png, \.jpg, \.jpeg"):
                refuse(tmp_path / "new" / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_destination(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        check_destination(tmp_path / "file" / "below" / "grid.png")
    check_destination(tmp_path / "new" / "grid.png")
    check_destination("grid.png")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="no permission to write"):
        check_destination(tmp_path / "grid.png")


def test_a_right_image_further_down_has_a_column_of_its_own(words):
    result = (_plain(BLUE), False)
    rows = [
        ResultRow(_plain(RED), ("a",), [result], rank=40, right=(_plain(GOLD), "rank 41 · g.jpg")),
        ResultRow(_plain(RED), ("b",), [(_plain(PINK), True)], rank=0),
    ]
    picture = results_grid(rows, "")
    assert {"1", "right one", "rank 41 · g.jpg"} <= set(words)
    blue, gold, pink = (_box(picture, colour) for colour in (BLUE, GOLD, PINK))
    assert gold[0] > blue[2]
    assert gold[1] == blue[1]
    assert pink[0] == blue[0]
    # Both right images are framed, and only they.
    pixels = (np.asarray(picture) == RIGHT).all(-1)
    for left, top, right, _ in (gold, pink):
        assert pixels[top - 10 : top, left:right].any()
    assert not pixels[blue[1] - 10 : blue[1], blue[0] : blue[2]].any()
    # A row with fewer results leaves a gap before the column.
    wide = ResultRow(_plain(RED), ("c",), [result, result, result], rank=0)
    assert _box(results_grid([rows[0], wide], ""), GOLD)[0] > gold[0] + SIDE
