"""Embed a catalogue's pictures into an index that can be searched, or bring one up to date.

cmap index --model runs/shop --images photographs --out INDEX
cmap index --model runs/shop --list catalogue.csv --images photographs --out INDEX --dtype int8
cmap index --list catalogue.csv --images photographs --out INDEX --update
cmap index --model gs://B/shop --images gs://B/photographs --out gs://B/INDEX \
    --runner DataflowRunner -- --project=P --region=R --temp_location=gs://B/tmp

A command that was stopped goes on where it stopped. Flags behind -- are Apache Beam's.
"""

import argparse
import itertools
import json
import shlex
import time
from typing import Any

from etils import epath

from cmap_jax.cli.arguments import add_backend_arguments, path, settings_from
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.progress import format_seconds

_SHOWN = 3  # pictures that cannot be read, in the last lines
_LONGEST = 80  # characters of an id, or of the fields' names, in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "--model",
        metavar="WORKDIR",
        type=path,
        help="the trained or converted model; with --update the index's own needs no naming",
    )
    parser.add_argument(
        "--images", metavar="DIR", type=path, help="the folder of pictures, with all below it"
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        type=path,
        help="a .csv, .jsonl or .parquet list with a column image, perhaps id, and metadata; its "
        "paths start from --images, or else from its own folder",
    )
    parser.add_argument(
        "--out",
        metavar="INDEX",
        type=path,
        required=True,
        help="a new folder for the index, one in which this command was stopped, or, with "
        "--update, one that holds an index",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the stored numbers, whose loss is measured; default: float32, or that of the "
        "index that is brought up to date",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="bring an index up to date: embed new and changed pictures, drop deleted ones",
    )
    add_backend_arguments(parser, "prepare the index for this search backend")
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="embed on many machines with this runner of Apache Beam, such as DataflowRunner",
    )
    parser.add_argument(
        "beam", nargs="*", metavar="-- BEAM_FLAG", help="Apache Beam's own flags, with --runner"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked at once, embed, and say what came of it."""
    _check(arguments)
    # JAX takes seconds to load, hence the imports in here.
    from cmap_jax.retrieval.backends import settings_of
    from cmap_jax.retrieval.indexing import build_index, check_destination
    from cmap_jax.trained import load

    before = check_destination(arguments.out, arguments.update)
    model = arguments.model or (before and before.model)
    if model is None:
        raise ValueError("--model WORKDIR is needed: it names the model that embeds the pictures")
    if arguments.backend:
        settings_of(arguments.backend, settings_from(arguments.set))  # refuses impossible ones
    _check_model(model)
    write = _beam(arguments, model)
    items = _read_items(arguments)
    if before:
        _check_same_catalogue(arguments, before, items)
    check_devices()
    use_compilation_cache(None)
    started = time.monotonic()
    trained = load(model)
    report = build_index(
        trained,
        items,
        arguments.out,
        dtype=arguments.dtype,
        update=arguments.update,
        backend=arguments.backend,
        settings=settings_from(arguments.set) if arguments.set else None,
        write=write,
    )
    print(_summary(report, arguments.out, time.monotonic() - started))
    print(f"{'next':11}{_next(trained.takes, arguments.out)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    if not (arguments.images or arguments.list):
        raise ValueError("no pictures: give --images DIR, or --list FILE, or both")
    if arguments.beam and not arguments.runner:
        raise ValueError(
            f"unexpected {arguments.beam[0]!r}: pictures are named by --images or --list, and "
            "flags behind -- are Apache Beam's, which --runner NAME turns on"
        )
    if arguments.set and not arguments.backend:
        raise ValueError("--set is for the backend that --backend names: give it too")


def _check_model(model: str) -> None:
    """Refuse a folder that holds no model, before the pictures are listed."""
    from cmap_jax.workdir.description import check_has_weights, read_description

    read_description(model)
    check_has_weights(model)


def _read_items(arguments: argparse.Namespace) -> list[Any]:
    from cmap_jax.retrieval.catalogue import items_of_folder, items_of_list

    if arguments.list:
        items, source = items_of_list(arguments.list, arguments.images), arguments.list
    else:
        items, source = items_of_folder(arguments.images), arguments.images
    print(f"{'pictures':11}{len(items):,} of {source}", flush=True)
    return items


def _check_same_catalogue(arguments: argparse.Namespace, before: Any, items: list[Any]) -> None:
    """Refuse an update by another catalogue, which would drop all that the index holds."""
    from cmap_jax.retrieval.catalogue import field_kinds
    from cmap_jax.retrieval.index_files.reading import StoredIndex

    new, out = arguments.list or arguments.images, arguments.out
    remedy = "give its own --list and --images again, or name another folder with --out"
    if before.fields and not field_kinds(items):
        raise ValueError(
            f"--update would drop all metadata: {out} has {', '.join(before.fields)[:_LONGEST]}, "
            f"which a list brought, and {new} has none; {remedy}"
        )
    try:
        stored = StoredIndex(out)
    except ValueError:  # it is damaged, which an update mends
        return
    if all(stored.position_of(item.id) is None for item in items):
        known = stored.item_at(0)
        raise ValueError(
            f"--update would drop all images: {out} has ids such as {known.id!r:.{_LONGEST}} (of "
            f"{known.image}), and {new} has none of them, but such as "
            f"{items[0].id!r:.{_LONGEST}}; {remedy}"
        )


def _beam(arguments: argparse.Namespace, model: str) -> Any:
    """Return the function that writes shards with Apache Beam; None: this process does it."""
    if not arguments.runner:
        return None
    from cmap_jax.retrieval.beam_indexing import beam_writer

    return beam_writer(model, [f"--runner={arguments.runner}", *arguments.beam])


def _summary(report: Any, out: str, seconds: float) -> str:
    """Return the last lines: what the index holds, its loss, and what could not be read."""
    about = report.manifest
    counts = {"known": about.count - report.encoded, "dropped": report.removed}
    others = "".join(f", {count:,} {name}" for name, count in counts.items() if count)
    size = f"{about.count * about.image_bytes / 1e6:,.1f} MB"
    lines = {
        "index": f"{out}: {about.count:,} images of {about.levels} x {about.width} numbers as "
        f"{about.dtype}, {size} in all",
        "embedded": f"{report.encoded:,} in {format_seconds(seconds)}{others}",
    }
    if about.dtype != "float32":
        lines["loss"] = "not measured: the pictures for it cannot be read any more"
    if report.loss is not None:
        lines["loss"] = str(report.loss)
    if report.unreadable:
        lines["unreadable"] = (
            f"{about.unreadable:,} of the pictures, which are not in the index; "
            f"{report.unreadable} has the reasons, such as {_examples(report.unreadable)}"
        )
    return "\n".join(f"{name:11}{text}" for name, text in lines.items())


def _next(takes: Any, out: str) -> str:
    """Return the command that searches the index, with the halves that the method takes."""
    image, text = "--image FILE", "--text CAPTION"
    query = f"{image} {text}" if takes.both else image if takes.image else text
    return f"cmap search {shlex.quote(out)} {query}"


def _examples(report: str) -> str:
    """Return the first lines of a report on pictures that cannot be read."""
    with epath.Path(report).open("r") as file:
        left_out = [json.loads(line) for line in itertools.islice(file, _SHOWN)]
    return "; ".join(f"{entry['image']}: {entry['reason']}" for entry in left_out)
