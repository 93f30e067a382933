"""The images of a prepared data set, as a source of encoded images."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline.examples import StoredExamples, parse
from input_pipeline.records import DataError

IMAGES, METADATA = "images", "metadata.json"  # their split, and the file with their ids
FIXED = ("resize", "pad_value", "read_as")  # the preprocessing's fields that preparing fixes
_SAME_FOR_ALL = {"fit": "pad", "resampling": "bilinear", "scaling": "fixed"}  # by the builders
_PROBES = 8  # records whose ids are compared with the list


class PreparedImages:
    """The images of a prepared data set, by id; an `ImageSource`.

    Attributes:
        ids: the image ids in the order of their records.
        facts: version, encoding and preprocessing, which two uses of the data must share.
        digest: of all images' bytes, as it was taken when they were prepared; None: before there
            were digests.
    """

    def __init__(
        self,
        stored: StoredExamples,
        ids: Sequence[str],
        facts: Mapping[str, Any],
        digest: str | None,
    ):
        """Open the records.

        Raises:
            DataError: the records are not those of the ids.
        """
        self.ids = tuple(ids)
        self.facts = facts
        self.digest = digest
        self._records = stored.open(IMAGES)
        self._directory = stored.directory
        self._positions = {image: position for position, image in enumerate(self.ids)}
        count = len(self.ids)
        probes = random.Random(0).sample(range(count), min(count, _PROBES))
        fits = len(self._records) == count
        if not fits or [parse(record)["id"] for record in self._records.read(probes)] != [
            self.ids[position] for position in probes
        ]:
            raise DataError(
                f"{self._directory}: its {len(self._records)} image records are not those of the "
                f"{count} ids in {METADATA}; build it again"
            )

    def where(self, image: str) -> str:
        """Return the folder and the position of an image's record, for messages."""
        return f"{self._directory}: {IMAGES}[{self._positions[image]}]"

    def read(self, image: str) -> bytes:
        """Return the bytes of the prepared image.

        Raises:
            DataError: a damaged record.
        """
        (record,) = self.records([image])
        return parse(record)["image"]

    def records(self, images: Sequence[str]) -> list[bytes]:
        """Return the serialized records of some images, read in one call.

        Raises:
            DataError: a damaged record.
        """
        return self._records.read([self._positions[i] for i in images])

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Refuse a preprocessing that differs from the one the images were prepared with.

        Raises:
            DataError: names the field and both values.
        """
        for field in (*FIXED, *_SAME_FOR_ALL):
            ours = _SAME_FOR_ALL.get(field) or self.facts[field]
            wanted = getattr(preprocessing, field)
            if ours != wanted:
                raise DataError(
                    f"{self._directory}: prepared with {field} {ours}, but the model takes images "
                    f"with {field} {wanted}; build it again with that, or use the raw images"
                )
