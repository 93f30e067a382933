"""Embedding an index's shards on many machines, as an Apache Beam pipeline.

write = beam_writer("gs://bucket/model", ["--runner=DataflowRunner", "--project=..."])
build_index(trained, items, "gs://bucket/INDEX", write=write)

This process lists the pictures and publishes the index. Each worker loads the model once, and
embeds one shard after the other. All machines must reach the model, the pictures and the index.

A shard that is tried twice is written twice alike by machines of one kind. Those of two kinds may
round differently; all files are compared with their checksums at the end, and a shard of which two
workers each wrote a part is refused.
"""

import contextlib
import functools
import io
import json
import logging
import os
import threading
from collections.abc import Sequence

from etils import epath

from cmap_jax.files import read_text, write_text
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.embedding import ShardTask, write_shards
from cmap_jax.retrieval.index_files.form import Description
from cmap_jax.retrieval.index_files.item_files import Stamp
from cmap_jax.retrieval.index_files.reading import damaged_files
from cmap_jax.retrieval.index_files.writing import GenerationWriter
from cmap_jax.retrieval.indexing import WriteShards
from cmap_jax.retrieval.pictures import Entry, PictureEncoder, Source
from cmap_jax.trained import load

_logger = logging.getLogger(__name__)

_MODEL = threading.Lock()  # a worker's threads share the model and its devices


def beam_writer(model: str, options: Sequence[str]) -> WriteShards:
    """Return a function that has shards embedded and written by a Beam pipeline.

    The function raises OSError if a file at the end is not the one that its shard was finished
    with.

    Args:
        model: workdir that all workers can read.
        options: Beam's flags, ``--runner=...`` among them.

    Raises:
        ModuleNotFoundError: Apache Beam is not installed; names the package to install.
        ValueError: Beam has no such runner, or refuses a flag.
    """
    _check_options(options)

    def write(folder: str, writer: GenerationWriter, tasks: Sequence[ShardTask]) -> None:
        for task in tasks:
            _write_task(_task_path(folder, writer.name, task.number), task)
        worker = ShardWorker(folder, writer.name, writer.description, model)
        _run_pipeline(worker, [task.number for task in tasks], options)
        for task in tasks:
            _task_path(folder, writer.name, task.number).unlink(missing_ok=True)
        if bad := damaged_files(f"{folder.rstrip('/')}/{writer.name}", writer.shards()):
            raise OSError(
                f"{bad[0]} was written by two workers that do not agree ({len(bad)} such files); "
                "run it again: their pictures alone are embedded anew"
            )

    return write


class ShardWorker:
    """Embeds and writes the shard of a number; it is sent to the workers."""

    def __init__(self, folder: str, generation: str, description: Description, model: str):
        """Take the folder of the index, the name of the generation, and the model's workdir."""
        self._folder = folder
        self._generation = generation
        self._description = description
        self._model = model

    def __call__(self, number: int) -> int:
        """Write the shard and return its number.

        Raises:
            ValueError: the model is not the one that the generation was begun with.
        """
        with _MODEL:
            encoder = _load_encoder(self._model, self._description.fingerprint)
            task = _read_task(_task_path(self._folder, self._generation, number), number)
            writer = GenerationWriter(self._folder, self._description, self._generation)
            write_shards(self._folder, writer, [task], encoder, shown=False)
        return number


def _check_options(options: Sequence[str]) -> None:
    """Refuse flags, and a runner that does not exist or needs packages that are not installed."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners import create_runner
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise ModuleNotFoundError(
            "Apache Beam is not installed: pip install 'cmap_jax[prepare]', or embed on this "
            "machine alone"
        ) from error
    parsed, said = PipelineOptions(list(options)), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed.get_all_options()
    except SystemExit as error:  # after a page about all flags of Beam, which ends in the reason
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"Apache Beam refuses its flags: {reason}") from error
    name = parsed.view_as(StandardOptions).runner
    try:
        create_runner(name)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the runner {name!r} of Apache Beam cannot be used: {reason}") from error


def _run_pipeline(worker: ShardWorker, numbers: Sequence[int], options: Sequence[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "numbers" >> beam.Create(numbers)
            | "spread" >> beam.Reshuffle()
            | "embed" >> beam.Map(worker)
        )


@functools.lru_cache(1)
def _load_encoder(model: str, fingerprint: str) -> PictureEncoder:
    """Return the encoder of a model, which a process loads once."""
    trained = load(model)
    if trained.fingerprint != fingerprint:
        raise ValueError(
            f"{model} holds another model on this worker (fingerprint {trained.fingerprint}) than "
            f"where the index was begun ({fingerprint})"
        )
    return PictureEncoder(trained)


def _task_path(folder: str, generation: str, number: int) -> epath.Path:
    return epath.Path(folder) / generation / f"task-{number:05}.jsonl"


def _write_task(path: str | os.PathLike, task: ShardTask) -> None:
    lines = []
    for item, source, stamp in task.entries:
        fields = [item.id, item.image, dict(item.metadata), source, stamp]
        lines.append(json.dumps(fields, separators=(",", ":")))
    write_text(path, "\n".join(lines) + "\n")


def _read_task(path: str | os.PathLike, number: int) -> ShardTask:
    entries = []
    for line in read_text(path).splitlines():
        name, image, metadata, source, stamp = json.loads(line)
        entries.append(
            Entry(
                Item(name, image, metadata),
                None if source is None else Source(*source),
                None if stamp is None else Stamp(*stamp),
            )
        )
    return ShardTask(number, entries)
