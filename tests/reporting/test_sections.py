"""The content of a report: which numbers stand beside which, and reasons for what is missing."""

import types

from published_results import stored_results

from cmap_jax.facts import DataFacts
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.reporting.document import Command, Folded, Notes, Paragraph, Picture, Table
from cmap_jax.reporting.sections import Material, sections_of
from cmap_jax.workdir.description import Description, Origin
from configs import default

NAME = "fashioniq/original"
_PICTURE = Picture(name="x", kind="png", content=b"", text="a picture")


def _material(**fields) -> Material:
    config = default.get_config()
    config.seed = 17
    config.model.embed_dim = 99
    description = Description(
        config=config,
        tokenizer=Vocabulary.build(["is red"]),
        preprocessing=ImagePreprocessing(resize=72, crop=64),
        protocols=(PROTOCOLS[NAME],),
        facts={},
    )
    usual = {
        "description": description,
        "origin": Origin({"jax": "9.8.7"}, "abc123", {"devices": "8 x H1000"}),
        "stored": stored_results(NAME, DataFacts()),
        "remarks": [],
        "overlap": {},
        "curves": _PICTURE,
        "grids": [_PICTURE],
        "heatmaps": (),
        "doctor": "the data are elsewhere",
        "defaults": default.get_config().to_dict(),
        "commands": ["cmap evaluate x"],
        "here": {"written on": "today"},
    }
    return Material(**(usual | fields))


def _blocks(title: str, **fields) -> list:
    sections = {section.title: section.blocks for section in sections_of(_material(**fields))}
    return sections.get(title, [])


def _kind(blocks: list, kind: type) -> list:
    return [block for block in blocks if isinstance(block, kind)]


def test_published_numbers_of_the_same_protocol_stand_below():
    results, rules = _kind(_blocks("Results"), Table)
    assert results.header[:4] == ["protocol", "R@10", "R@50", "mR"]
    rows = {row[0]: row for row in results.rows}
    assert rows[NAME][1:4] == ["12.00"] * 3
    assert rows["  95% interval"][3] == "11.0-13.0"
    assert rows["published: CMAP, as published"][1:4] == ["30.24", "55.00", "42.68"]
    assert rows["  shirt"][1:4] == ["25.52", "48.63", ""]
    assert rows["published: ARTEMIS"][1:4] == ["", "", "38.17"]
    assert rows["published: SPRC (vision-language)"][3] == "64.85"
    assert "51.03" not in str(rows)  # It belongs to another gallery.
    assert len({len(row) for row in [results.header, *results.rows]}) == 1
    assert rules.rows[0][:3] == [NAME, PROTOCOLS[NAME].gallery, "both orders"]


def test_numbers_of_another_gallery_are_not_beside_published_ones():
    stored = stored_results(NAME, DataFacts(), gallery_images=16)
    blocks = _blocks("Results", stored=stored)
    assert "42.68" not in str(blocks)
    (notes,) = _kind(blocks, Notes)
    assert any("the gallery has 16 images here and 15,536 there" in line for line in notes.lines)


def test_remarks_come_first():
    assert _blocks("Results", remarks=["stale"])[0] == Notes(["stale"])


def test_what_is_not_there_is_said():
    assert _blocks("Curves", curves="none: converted") == [Paragraph("none: converted")]
    assert _blocks("Queries", grids="no data") == [Paragraph("no data")]
    assert Paragraph("the data are elsewhere") in _blocks("Data")
    assert _blocks("Regions") == []


def test_overlap_and_heat_maps_are_shown_where_measured():
    table, picture = _blocks("Regions", overlap={NAME: {"region_iou": 0.25}}, heatmaps=[_PICTURE])
    assert table.rows == [["region iou", "0.250"]]
    assert NAME in table.caption
    assert picture is _PICTURE


def test_the_doctors_findings():
    finding = types.SimpleNamespace(
        severity="warning", title="7 leaks", fix="take them out", items=tuple("abcdefg")
    )
    count = types.SimpleNamespace(things="triplets", actual=5, published=6000, agrees=False)
    doctor = types.SimpleNamespace(
        directory="/data", verdict=lambda: "ready", counts=[count], findings=[finding]
    )
    blocks = _blocks("Data", doctor=doctor)
    tables = {table.caption: table.rows for table in _kind(blocks, Table)}
    assert tables["The doctor's findings"] == [["warning", "7 leaks", "take them out"]]
    assert tables["Counts"] == [["triplets", "5", "6,000", "differs"]]
    (folded,) = _kind(blocks, Folded)
    assert folded.text == "7 leaks\n  a\n  b\n  c\n  d\n  e\n  ... and 2 more"
    assert Paragraph("The doctor's verdict on /data: ready.") in blocks


def test_the_config_and_what_differs_from_the_defaults():
    table, folded = _blocks("Config")
    expected = [["config.model.embed_dim", "99", "512"], ["config.seed", "17", "0"]]
    assert sorted(table.rows) == expected
    assert '"embed_dim": 99' in folded.text


def test_seeds_hardware_versions_and_commands():
    command, *tables = _blocks("Reproduction")
    assert command == Command("cmap evaluate x")
    text = str(tables)
    for expected in ("'17'", "abc123", "9.8.7", "8 x H1000", "today"):
        assert expected in text


def test_earlier_workdirs_have_no_hardware():
    blocks = _blocks("Reproduction", origin=Origin({}, None, {}))
    assert "earlier version" in str(blocks)
