"""A report as HTML and as Markdown: all of it is there, and no text is taken for a mark."""

import html.parser
import io

import pytest
from PIL import Image

from cmap_jax.reporting.document import (
    Command,
    Document,
    Folded,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
)
from cmap_jax.reporting.html import to_html
from cmap_jax.reporting.markdown import to_markdown
from cmap_jax.reporting.writing import check_report, curves_picture, write_report

EVIL = '<script>alert("x")</script> | `a` *b* & [c](http://evil.example)'
_VOID = {"meta", "img", "br", "path", "use", "rect"}


def _png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (2, 2), (9, 9, 9)).save(encoded, "PNG")
    return encoded.getvalue()


def _document(text: str = EVIL) -> Document:
    picture = Picture(name="a picture", kind="png", content=_png(), text=text)
    blocks = [
        Paragraph(text),
        Notes([text]),
        Command("cmap report `x`"),
        Folded(text, text),
        Table(["", text], [["  a", text]], caption=text),
        Table([], [["name", text]], numeric=False),
        picture,
        curves_picture({"loss/total": {1: 2.0, 2: 1.0}}),
    ]
    return Document(text, text, [Section("All", blocks), Section("Two words", [Paragraph("end")])])


class _Page(html.parser.HTMLParser):
    """The elements and the text of a page; a tag that is not closed in order is refused."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for name, v in attrs if name in ("src", "href", "xlink:href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [v for name, v in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_is_self_contained_and_escapes_all_text():
    page = _Page(to_html(_document()))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 8
    assert page.tags.count("table") == 2
    assert "details" in page.tags
    assert "svg" in page.tags
    assert page.sources
    # Nothing is fetched: pictures are in the page, and links lead within it.
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert {"#all", "#two-words"} <= set(page.sources)


def test_the_curves_take_the_colors_of_the_page():
    picture = curves_picture({"loss/total": {1: 2.0, 2: 1.0}, "loss/matching": {1: 1.0}})
    assert "var(--line-1)" in picture.drawing
    assert "var(--ink)" in picture.drawing
    assert "#0072b2" not in picture.drawing
    assert picture.drawing.startswith("<svg")
    assert picture.text == "Curves over 2 steps: loss"
    assert curves_picture({"a": {1: 2.0}}) == curves_picture({"a": {1: 2.0}})


def test_markdown_has_the_same_parts(tmp_path):
    path = tmp_path / "new" / "my report.html"
    check_report(path)
    write_report(_document("plain"), path)
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# plain\n\nplain\n\n## All\n\nplain\n\n- plain\n")
    assert "|  | plain |\n| --- | ---: |\n| &nbsp;&nbsp;a | plain |" in text
    assert "```\ncmap report `x`\n```" in text
    assert "![plain](my%20report/a%20picture.png)" in text
    assert (tmp_path / "new" / "my report" / "a picture.png").read_bytes() == _png()
    assert path.read_text() == to_html(_document("plain"))


def test_markdown_escapes_marks():
    text = to_markdown(_document(), "folder")
    outside = text.replace("```", "").replace(f"\n{EVIL}\n", "")  # kept as it is between fences
    assert "<script" not in outside.replace("\\<script", "")
    row = next(line for line in text.splitlines() if line.startswith("| &nbsp;"))
    assert row.replace("\\|", "").count("|") == 3


def test_a_text_with_fences_stays_inside():
    text = to_markdown(Document("a", "b", [Section("c", [Folded("d", "```\nx\n````")])]), "f")
    assert "\n`````\n```\nx\n````\n`````\n" in text


@pytest.mark.parametrize("name", ["report.pdf", "report", "folder.html", "taken.html"])
def test_files_that_cannot_be_written_are_refused(name, tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "taken").write_text("")
    with pytest.raises((ValueError, OSError), match=name.removesuffix(".html")):
        check_report(tmp_path / name)


def test_bytes_that_are_no_utf8_are_shown(tmp_path):
    write_report(Document("a\udcff", "b", []), tmp_path / "report.html")
    assert "a\\udcff" in (tmp_path / "report.html").read_text()
