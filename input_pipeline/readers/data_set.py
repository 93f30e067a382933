"""The interface between a data set's file and the rest: all that is known of one data set.

Each file in this folder ends in one entry::

    DATA_SET = DataSet(name="colors", read=read, description="Squares of one color each.")

`input_pipeline.registry` lists the entries; readers, doctor, builders and submissions work from
them and know no data set by name.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cmap_jax.protocols import Submission
from input_pipeline.records import Evaluation, FixedTriplets, Records, TripletSource


@dataclasses.dataclass(frozen=True)
class Count:
    """A number of a data set, in the folder at hand and as published.

    Attributes:
        things: the plural noun for the things that are counted, such as "train triplets".
        actual: their number in the folder.
        published: their number in the published data set.
        remark: the reason of a difference, or a number that this one is easily taken for.
    """

    things: str
    actual: int
    published: int
    remark: str = ""

    @classmethod
    def compare(cls, things: str, actual: int, published: int, remark: str = "") -> "Count":
        """Return a count that has a remark where the numbers differ, and nowhere else.

        Args:
            things: see the class.
            actual: see the class.
            published: see the class.
            remark: the reason of a difference; empty: the difference itself, "8 fewer".
        """
        if actual == published:
            return cls(things, actual, published)
        difference = f"{abs(actual - published):,} {'fewer' if actual < published else 'more'}"
        return cls(things, actual, published, remark or difference)

    @property
    def agrees(self) -> bool:
        """Tell whether the folder has what was published."""
        return self.actual == self.published

    def to_dict(self) -> dict:
        """Return the fields under the names that the doctor's JSON has for them."""
        return {
            "what": self.things,
            "found": self.actual,
            "published": self.published,
            "remark": self.remark,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """How a data set that this library draws itself gets onto the disk.

    Attributes:
        render: ``render(directory, **settings)`` draws the data set into a folder that is empty or
            missing, and returns at once where the folder holds it already. ValueError: the folder
            holds something else, or the data set with other settings.
        settings: the fields of ``config.data.<name>``, with the defaults of the builder.
        read_settings: returns all settings with which the content of a folder was rendered.
            FileNotFoundError: nothing is rendered there.
        side: pixels a side of a prepared image unless the builder is told otherwise.
    """

    render: Callable[..., Any]
    settings: Mapping[str, int]
    read_settings: Callable[[str], dict[str, int | float]]
    side: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """All that the library knows of one data set beside its protocols and its config.

    Attributes:
        name: value of ``config.data.name``.
        read: ``read(directory, image_directory)`` returns the records of a raw folder;
            ``image_directory`` is None where the images lie in ``directory``.
        description: a few sentences for the catalog of prepared data sets.
        mark: regular expression for the path, from the data set's folder on, of a file by which
            the layout is recognized; empty: never recognized.
        aliases: other names that commands take.
        training: the class of its training items.
        training_files: the annotation files without which there is nothing to train on, for
            messages.
        evaluation_only: whether the data set has no training items at all.
        has_concepts: whether its queries name a shared concept, and can be put under the caption
            policy "concept".
        published: whether files can be taken from their publisher again.
        suffixes: suffixes of the image files where the image ids have none.
        counts: ``counts(records, directory)`` yields the numbers of the folder beside the published
            ones; None: nothing was published.
        rendering: how the data set is drawn; None: it is not drawn by this library.
        submission: the answers that the data set's server takes; None: there is no server.
        explain_unknown_gallery: ``explain_unknown_gallery(directory, image_directory, evaluation)``
            says why it cannot be told whether an answer is an image of the gallery, empty where it
            can; None: it always can.
        homepage: address of the data set's own page.
        citation: BibTeX entries.
        manual_dir: content that the folder of the raw data must have to be prepared, in words.
    """

    name: str
    read: Callable[..., Records]
    description: str
    mark: str = ""
    aliases: tuple[str, ...] = ()
    training: type[TripletSource] = FixedTriplets
    training_files: str = ""
    evaluation_only: bool = False
    has_concepts: bool = False
    published: bool = True
    suffixes: tuple[str, ...] = ()
    counts: Callable[[Records, str], Iterable[Count]] | None = None
    rendering: Rendering | None = None
    submission: Submission | None = None
    explain_unknown_gallery: Callable[[str, str | None, Evaluation], str] | None = None
    homepage: str | None = None
    citation: str | None = None
    manual_dir: str = "the annotations and the images"
