"""The rendered garments: pictures, captions, splits, the folder on disk, and the oracles."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline import garments
from input_pipeline.garments import (
    attributes,
    canvas,
    captions,
    drawing,
    oracles,
    rendering,
)
from input_pipeline.garments import (
    folder as folder_lib,
)
from input_pipeline.garments.attributes import ATTRIBUTES, NAMES, Garment, garment

ROOT = pathlib.Path(__file__).parents[2]
A_DRESS = Garment("dress", "red", "dotted", "long", "v", "short")


def draw_triplets(count: int, *, split: str = "test", seed: int = 0, three: float = 0.2):
    members = attributes.split(seed)[split]
    rng = np.random.default_rng(seed)
    return list(captions.triplets(members, count, three_changes=three, rng=rng))


# --- attributes ---


def test_grid_and_ids():
    assert attributes.COUNT == 7680 == len(attributes.grid())
    assert A_DRESS.id == "dress-red-dotted-long-v-short"
    assert len({garment(i).id for i in range(attributes.COUNT)}) == attributes.COUNT
    for index in (0, 1, 4321, attributes.COUNT - 1):
        assert garment(index).index == index
        codes = [ATTRIBUTES[name].index(getattr(garment(index), name)) for name in NAMES]
        assert attributes.grid()[index].tolist() == codes
    with pytest.raises(ValueError, match="color is 'mauve'"):
        dataclasses.replace(A_DRESS, color="mauve")


def test_splits_are_disjoint_and_complete():
    split = attributes.split(0)
    sizes = {name: len(indices) for name, indices in split.items()}
    assert sizes == {"train": 4680, "val": 1000, "test": 2000}
    everything = np.sort(np.concatenate(list(split.values())))
    np.testing.assert_array_equal(everything, np.arange(attributes.COUNT))
    np.testing.assert_array_equal(split["test"], attributes.split(0)["test"])
    assert not np.array_equal(split["test"], attributes.split(1)["test"])


# --- pictures ---


def test_render_is_a_pure_function():
    first = drawing.render(A_DRESS, 3)
    assert (first.mode, first.size) == ("RGB", (72, 72))
    assert first.tobytes() == drawing.render(A_DRESS, 3).tobytes()
    assert first.tobytes() != drawing.render(A_DRESS, 4).tobytes()
    assert first.tobytes() != drawing.render(A_DRESS, 3, view=1).tobytes()
    assert drawing.render(A_DRESS, 3, size=100).size == (100, 100)


def test_garments_stay_inside_the_center_crop(monkeypatch):
    boxes = []
    photograph = drawing.photograph

    def spy(pen, rng, size):
        boxes.append(pen.alpha.getbbox())
        return photograph(pen, rng, size)

    monkeypatch.setattr(drawing, "photograph", spy)
    rng = np.random.default_rng(0)
    widest = [
        Garment(kind, "blue", "solid", "long", neck, "long")
        for kind, neck in itertools.product(ATTRIBUTES["type"], ("round", "high"))
    ]
    for view in range(6):
        for item in [*widest, *map(garment, rng.integers(attributes.COUNT, size=8))]:
            drawing.render(item, view=view, size=72)
    left, top, right, bottom = np.array(boxes).T / 4  # the canvas is four times as large
    assert min(left) >= 4
    assert min(top) >= 4
    assert max(right) <= 68
    assert max(bottom) <= 68


def test_every_attribute_shows(monkeypatch):
    """With equal nuisances, each change of one value changes the picture well beyond the noise."""
    monkeypatch.setattr(Garment, "index", 7)
    rng = np.random.default_rng(1)
    backgrounds = [garment(i) for i in rng.integers(attributes.COUNT, size=4)]
    for item, name in itertools.product(backgrounds, NAMES):
        pictures = [
            np.asarray(drawing.render(dataclasses.replace(item, **{name: value})), float)
            for value in ATTRIBUTES[name]
        ]
        for one, other in itertools.combinations(pictures, 2):
            far = np.abs(one - other).max(axis=2) > 40
            assert far.sum() >= 60, (item.id, name)  # pictures of 72 x 72 pixels


# --- captions ---

PHRASES = sorted(
    [
        *(
            (phrase, captions.Change(name, value=value))
            for name, values in captions.ABSOLUTE.items()
            for value, phrases in values.items()
            for phrase in phrases
        ),
        *(
            (phrase, captions.Change(name, steps=steps))
            for name, scale in captions.RELATIVE_PHRASES.items()
            for steps, phrases in scale.items()
            for phrase in phrases
        ),
    ],
    key=lambda pair: pair[0],
)


def read(caption: str) -> set[captions.Change]:
    """The meaning of a caption, from its words alone."""
    said = set()
    for clause in caption.split(" and "):
        for opening in ("the garment ", "this one ", "it "):
            clause = clause.removeprefix(opening)
        meanings = [change for phrase, change in PHRASES if phrase == clause]
        assert len(meanings) == 1, clause
        said.update(meanings)
    return said


def test_no_two_meanings_share_a_phrase():
    phrases = [phrase for phrase, _ in PHRASES]
    assert len(phrases) == len(set(phrases))
    for name, values in captions.ABSOLUTE.items():
        assert tuple(values) == ATTRIBUTES[name]
    assert set(captions.RELATIVE_PHRASES) == attributes.ORDINAL


def test_reference_and_captions_leave_only_the_target():
    members = set(attributes.split(0)["test"].tolist())
    for triplet in draw_triplets(1500):
        assert triplet.reference != triplet.target
        assert {triplet.reference.index, triplet.target.index} <= members
        said = read(triplet.captions[0]) | read(triplet.captions[1])
        assert said == set(triplet.changes)
        assert len({change.attribute for change in said}) == len(said)
        result = triplet.reference
        for change in said:
            result = change.apply(result)
        # `apply` has one result, and it is in the grid once: no other garment is right.
        assert result == triplet.target
        for caption in triplet.captions:
            assert caption.replace(" ", "").isalpha()
            assert caption.isascii()
            assert caption == caption.lower().strip()


def test_proportions():
    triplets = draw_triplets(4000)
    sizes = collections.Counter(len(t.changes) for t in triplets)
    assert set(sizes) == {2, 3}
    assert sizes[3] / len(triplets) == pytest.approx(0.2, abs=0.03)
    ordinal = [c for t in triplets for c in t.changes if c.attribute in attributes.ORDINAL]
    # Half of those that can be; three steps of sleeves cannot.
    assert 0.4 < np.mean([c.value is None for c in ordinal]) < 0.5
    uses = collections.Counter(t.target for t in triplets)
    assert set(uses.values()) == {2}
    for name in NAMES:
        assert np.mean([name in {c.attribute for c in t.changes} for t in triplets]) > 0.15


def test_triplets_depend_on_the_seed_only():
    assert draw_triplets(50) == draw_triplets(50)
    assert draw_triplets(50) != draw_triplets(50, seed=1)


def test_too_small_a_split_is_refused():
    with pytest.raises(ValueError, match="too small"):
        list(captions.triplets(np.arange(3), 1, three_changes=0.0, rng=np.random.default_rng(0)))


def test_steps_off_the_scale_are_refused():
    with pytest.raises(ValueError, match="off the scale"):
        captions.Change("sleeves", steps=1).apply(A_DRESS)


# --- oracles ---


def brute_force(queries, gallery, three_changes):
    """The same by another road: every reference of the grid, every order of the tied."""
    hits = {"text_oracle": [], "reference_oracle": []}
    for query in queries:
        candidates = [garment(i) for i in gallery if i != query.reference.index]
        text, picture = [], []
        for candidate in candidates:
            # P(these changes are told | candidate), up to a constant: sum over the references.
            names = [change.attribute for change in query.changes]
            text.append(0.0)
            for values in itertools.product(*(ATTRIBUTES[name] for name in names)):
                before = dataclasses.replace(candidate, **dict(zip(names, values, strict=True)))
                text[-1] += np.prod([told(c, before, candidate) for c in query.changes])
            apart = distance(query.reference, candidate)
            share = {2: 1 - three_changes, 3: three_changes}.get(apart, 0)
            picture.append(share / neighbors(apart))
        for name, weights in (("text_oracle", text), ("reference_oracle", picture)):
            mine = weights[candidates.index(query.target)]
            above, level = sum(w > mine for w in weights), sum(w == mine for w in weights)
            places = range(above, above + level)
            hits[name].append([np.mean([p < k for p in places]) for k in oracles.CUTOFFS])
    return {name: (100 * np.mean(rows, axis=0)).tolist() for name, rows in hits.items()}


@functools.cache
def neighbors(apart: int) -> int:
    return sum(distance(garment(0), garment(i)) == apart for i in range(attributes.COUNT))


def distance(one: Garment, other: Garment) -> int:
    return sum(getattr(one, name) != getattr(other, name) for name in NAMES)


def told(change: captions.Change, before: Garment, after: Garment) -> float:
    values = ATTRIBUTES[change.attribute]
    old, new = (values.index(getattr(item, change.attribute)) for item in (before, after))
    by_steps = change.attribute in attributes.ORDINAL and abs(new - old) <= 2
    if new == old:
        return 0.0
    if change.value is None:
        return 0.5 * (new - old == change.steps)
    return (0.5 if by_steps else 1.0) * (values[new] == change.value)


@pytest.mark.slow
@pytest.mark.parametrize("three_changes", [0.2, 0.0])
def test_oracles_match_brute_force(three_changes):
    gallery = attributes.split(0)["test"][:300]
    rng = np.random.default_rng(0)
    queries = list(captions.triplets(gallery, 25, three_changes=three_changes, rng=rng))
    got = oracles.ceilings(queries, gallery, three_changes=three_changes)
    want = brute_force(queries, gallery, three_changes)
    for name, recalls in got.items():
        assert list(recalls) == ["R@1", "R@10", "R@50"]
        np.testing.assert_allclose(list(recalls.values()), want[name], atol=0.006)


def test_no_shortcut_reaches_a_quarter():
    queries = draw_triplets(2000)
    on_test = oracles.ceilings(queries, attributes.split(0)["test"], three_changes=0.2)
    on_all = oracles.ceilings(queries, np.arange(attributes.COUNT), three_changes=0.2)
    for name in ("text_oracle", "reference_oracle"):
        assert on_all[name]["R@10"] < on_test[name]["R@10"] < 25


def test_target_outside_the_gallery_is_refused():
    with pytest.raises(ValueError, match="not in the gallery"):
        oracles.ceilings(draw_triplets(5), np.arange(0), three_changes=0.2)


# --- the folder ---

SMALL = {"image_size": 16, "train_triplets": 40, "val_queries": 10, "test_queries": 20}


@pytest.fixture
def no_drawing(monkeypatch):
    """Most tests of the folder need no pictures."""
    monkeypatch.setattr(rendering, "render", lambda *args: None)


def load(path: pathlib.Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_layout_on_disk(tmp_path, no_drawing):
    folder = garments.prepare(tmp_path / "deep" / "garments", **SMALL)
    assert [p.name for p in folder.parent.iterdir()] == ["garments"]
    ids = {
        name: load(folder / f"image_splits/split.garments.{name}.json")
        for name in ("train", "val", "test", "all")
    }
    assert len(ids["all"]) == attributes.COUNT
    assert sorted(ids["train"] + ids["val"] + ids["test"]) == sorted(ids["all"])
    for name, count in (("train", 40), ("val", 10), ("test", 20)):
        entries = load(folder / f"captions/cap.garments.{name}.json")
        assert len(entries) == count
        for entry in entries:
            assert set(entry) == {"target", "candidate", "captions"}
            assert len(entry["captions"]) == 2
            assert {entry["target"], entry["candidate"]} <= set(ids[name])
    stamp = load(folder / folder_lib.STAMP)
    assert stamp["format_version"] == folder_lib.FORMAT_VERSION
    assert stamp["settings"] == {"seed": 0, "three_changes": 0.2, **SMALL}
    assert stamp["counts"]["test"] == {"images": 2000, "triplets": 20}
    assert set(stamp["oracles"]) == {"garments/test", "garments/all"}
    assert set(stamp["oracles"]["garments/all"]) == {"text_oracle", "reference_oracle"}


def test_complete_folder_is_kept_and_others_are_refused(tmp_path, no_drawing, monkeypatch):
    empty = tmp_path / "garments"
    empty.mkdir()
    folder = garments.prepare(empty, **SMALL)
    before = (folder / folder_lib.STAMP).stat().st_mtime_ns
    assert garments.prepare(folder, **SMALL) == folder
    assert (folder / folder_lib.STAMP).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"garments .*seed is 0 there and 5 here.* or delete it"):
        garments.prepare(folder, **SMALL, seed=5)
    monkeypatch.setattr(folder_lib, "FORMAT_VERSION", 99)
    with pytest.raises(ValueError, match="format_version is 1 there and 99 here"):
        garments.prepare(folder, **SMALL)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine exists .*no garments.json"):
        garments.prepare(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"three_changes is 1\.5"):
        garments.prepare(tmp_path, three_changes=1.5)
    with pytest.raises(ValueError, match="seed is -1, less than 0"):
        garments.prepare(tmp_path, seed=-1)


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(rendering, "render", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        garments.prepare(tmp_path / "garments", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path, no_drawing):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    target = tmp_path / "garments"
    stale = tmp_path / (folder_lib._partial_prefix(target) + str(ended.pid))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        busy = tmp_path / (folder_lib._partial_prefix(target) + str(running.pid))
        for folder in (stale, busy):
            (folder / "images").mkdir(parents=True)
        garments.prepare(target, **SMALL)
        assert not stale.exists()
        assert busy.exists()
        running.communicate(b"\n")


def test_drawing_in_child_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_IMAGES_PER_WORKER", 20)
    rendering.render(tmp_path, 45, seed=2, size=32)
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {garment(i).id for i in range(45)}
    again = tmp_path / "again"
    again.mkdir()
    drawing.render_files(again, [17], 2, 32)
    path = again / f"{garment(17).id}.jpg"
    assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    with Image.open(path) as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
        error = np.asarray(picture, float) - np.asarray(drawing.render(garment(17), 2, size=32))
    assert np.abs(error).mean() < 3  # the JPEG is nearly lossless


def test_a_failing_child_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_PROGRESS_SECONDS", 60)  # progress would list the folder
    with pytest.raises(RuntimeError, match=r"drawing garments failed(?s:.*)FileNotFoundError"):
        rendering.render(tmp_path / "missing", 2, seed=0, size=32)


def _start(code: str, *arguments: object) -> subprocess.Popen:
    """Start a program in the folder of the project; what it writes can be read."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def _drawing_processes(directory: pathlib.Path) -> list[int]:
    """The processes whose command line names a folder below, which begins with a dot."""
    here = os.fsencode(directory) + b"/."
    processes = [p for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]
    lines = {}
    for process in processes:
        with contextlib.suppress(OSError):
            lines[int(process.name)] = (process / "cmdline").read_bytes()
    return [number for number, line in lines.items() if here in line]


RENDERED = """
import pathlib, sys
from cmap_jax.cli.termination import ending_on_sigterm
from input_pipeline import garments
from input_pipeline.garments import rendering
rendering._IMAGES_PER_WORKER = 5000
with ending_on_sigterm():
    garments.prepare(pathlib.Path(sys.argv[1]), image_size=200)
"""


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="processes are listed in /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)],
)
def test_drawing_ends_with_the_program(tmp_path, number, status):
    directory = tmp_path / "garments"
    with _start(RENDERED, directory) as program:
        _wait_for(lambda: list(tmp_path.glob(".garments.*/images/*.jpg")))
        assert _drawing_processes(tmp_path)
        program.send_signal(number)
        _, errors = program.communicate(timeout=30)
    assert program.returncode == status, errors
    _wait_for(lambda: not _drawing_processes(tmp_path))
    assert "Traceback" not in errors
    left = list(tmp_path.iterdir())
    assert not left if number == signal.SIGTERM else len(left) == 1  # the next run removes it


def _wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


WITH_LIMIT = """
import pathlib, resource, sys
from input_pipeline.garments import folder, rendering
if sys.argv[2] == "pictures":  # everything else is small
    folder._dump = lambda content, path: None
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    folder.prepare(pathlib.Path(sys.argv[1]), train_triplets=9, val_queries=9, test_queries=9)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["pictures", "lists"])
def test_a_full_disk_gets_one_line(tmp_path, what):
    """A limit of a file's size stands for the disk."""
    with _start(WITH_LIMIT, tmp_path / "garments", what) as program:
        line, errors = program.communicate(timeout=60)
    assert line == (
        f"{tmp_path}/garments: the garments cannot be written: File too large; make room there, or "
        "give another directory\n"
    ), errors
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys; from input_pipeline.garments import drawing; "
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    root = pathlib.Path(garments.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_palette_covers_the_colors():
    assert set(canvas._PALETTE) == set(ATTRIBUTES["color"])
    assert set(canvas._PRINTS) == set(ATTRIBUTES["pattern"])
