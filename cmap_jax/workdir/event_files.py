"""The numbers that a run has written for TensorBoard, read back without TensorBoard or TensorFlow.

    curves = read_curves("runs/garments")
    curves["loss/total"]                  # {50: 25.7, 100: 12.0}, value by step

The event files of a workdir hold the only record of a run's curves. Their form is that of a
TFRecord file: each record is an eight-byte length, a four-byte checksum, the bytes of an `Event`,
and another checksum. TensorBoard's own reader verifies the checksums in Python, which takes seconds
a megabyte; a record that is cut off, the common damage, shows without them.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from cmap_jax.files import check_regular_file
from cmap_jax.workdir.description import absolute

Curves: TypeAlias = Mapping[str, Mapping[int, float]]  # tag, step -> value

_PATTERN = "events.out.tfevents.*"
_LENGTH = struct.Struct("<Q4x")
_CHECKSUM = 4  # bytes
_PICTURE = 2**16  # bytes; a larger record holds a picture, and no number


def read_curves(workdir: str | os.PathLike) -> dict[str, dict[int, float]]:
    """Return each number's values by step, ascending; empty where nothing was written.

    A resumed run has several files, and may have done some steps twice: the later file counts.

    Args:
        workdir: the folder of a run, local or in a bucket.

    Raises:
        ImportError: the package tensorboard is not installed; names it.
        ValueError: an event file is no regular file; names it.
    """
    curves: dict[str, dict[int, float]] = {}
    # The names have the time in seconds at which the files were begun.
    for path in sorted(absolute(workdir).glob(_PATTERN)):
        check_regular_file(path)
        with path.open("rb") as file:
            for tag, step, value in _numbers(_records(file)):
                curves.setdefault(tag, {})[step] = value
    return {tag: dict(sorted(values.items())) for tag, values in curves.items()}


def _records(file) -> Iterator[bytes]:
    """Yield the small records of an event file, up to the first one that is cut off."""
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        if length > _PICTURE:
            file.seek(length + _CHECKSUM, os.SEEK_CUR)
            continue
        record = file.read(length)
        if len(record) < length:
            return
        file.seek(_CHECKSUM, os.SEEK_CUR)
        yield record


def _numbers(records: Iterator[bytes]) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of each number in records; damaged records end them."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ImportError(
            "the curves of a run are read with the package tensorboard: pip install tensorboard"
        ) from error
    for record in records:
        try:
            event = Event.FromString(record)
        except DecodeError:
            return
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                yield value.tag, event.step, make_ndarray(value.tensor).item()
