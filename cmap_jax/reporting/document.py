"""The parts of a report, without a form: `html` and `markdown` give them one.

    section = Section("Results", [Table(["", "R@1"], [["this model", "10.2"]]), Notes(["..."])])
    document = Document("runs/garments", "cmap, step 4,000", [section])

Texts are plain: a form escapes whatever it must.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str


@dataclasses.dataclass(frozen=True)
class Notes:
    """Sentences, each of which stands alone."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Command:
    """Lines for a shell, or another text that must be copied as it is."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the first cell of each a heading.

    Attributes:
        header: cells above the columns; empty: a table of names and values.
        rows: as many cells each as all others have.
        numeric: whether all cells but the first are numbers, which are aligned to the right.
        caption: line above the table; may be empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in a file's form.

    Attributes:
        name: name of its file without the suffix, where it is not part of the document.
        kind: format of ``content``.
        content: the bytes of the file.
        text: the picture in words, for people who do not see it.
        drawing: the same picture as an SVG that takes the page's colors; None: there is none.
    """

    name: str
    kind: Literal["png", "jpg"]
    content: bytes
    text: str
    drawing: str | None = None


@dataclasses.dataclass(frozen=True)
class Folded:
    """Text that is long and that few people read.

    Attributes:
        title: line that stands for it.
        text: lines that are kept as they are.
    """

    title: str
    text: str


Block: TypeAlias = Paragraph | Notes | Command | Table | Picture | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report under a title."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: the model's name.
        subtitle: the model in a line.
        sections: in the order of reading.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        """Return all pictures in the order of reading."""
        return [b for part in self.sections for b in part.blocks if isinstance(b, Picture)]
