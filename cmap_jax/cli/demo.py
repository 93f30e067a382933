"""Open the search page on rendered garments, or on pictures of one's own.

cmap demo
cmap demo --images photographs
cmap demo --images photographs --list catalogue.csv --model openai/clip-vit-base-patch32

Without --images, a small model is trained on the garments first, if there is none. What it makes
is kept below the folder `runs`, and used again.
"""

import argparse
import dataclasses
import hashlib
import http.client
import os
import sys
import threading
import time
import webbrowser
from typing import Any, NamedTuple

from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.demo_models import check_installed, own_model
from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.serve import MOST_PORT, OWN_NAMES

_GARMENTS = "configs/garments.py:debug"
_OWN = os.path.join("runs", "demo")  # models and indexes for one's own pictures
_HOST, _PORT = "127.0.0.1", 8000
_EXAMPLES = 5  # words of a vocabulary in a note


class _Demo(NamedTuple):
    """A model and its pictures.

    Attributes:
        workdir: of the model.
        items: of the gallery.
        index: beginning of the path of the index.
        title: heading of the page.
        notes: sentences on what the model can do.
    """

    workdir: str
    items: Any
    index: str
    title: str
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "--images", metavar="DIR", type=path, help="a folder of pictures, with all below it"
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        type=path,
        help="a .csv, .jsonl or .parquet list of pictures, whose columns become filters; its "
        "paths start from --images, or else from its own folder",
    )
    parser.add_argument(
        "--model",
        "--pretrained",
        metavar="WORKDIR|FOLDER|ID",
        type=path,
        help="a trained model; or, for pictures of one's own, a CLIP or SigLIP as Hugging Face "
        "stores it. Default: the garments' small model, or the encoder of the extra [pretrained], "
        "which reads no texts",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER|FILE",
        type=path,
        help="the tokenizer of a CLIP or SigLIP, if its folder has none",
    )
    parser.add_argument(
        "--port", type=int, help=f"default {_PORT}, or a free one where that is taken"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(arguments: argparse.Namespace) -> int:
    """Prepare what is missing, then serve until Ctrl-C."""
    is_own = bool(arguments.images or arguments.list)
    _check(arguments, is_own)
    # FastAPI and uvicorn come with an extra; its absence is told before any work.
    from cmap_jax.serving import server
    from cmap_jax.serving.opening import Opener
    from cmap_jax.serving.settings import Settings

    check_devices()
    use_compilation_cache(None)
    # A port that cannot be used is refused before the model is trained.
    with _listen(arguments.port) as listener:
        demo = _own_pictures(arguments) if is_own else _garments(arguments.model)
        opener = Opener(_index(demo), demo.workdir)
        port = listener.getsockname()[1]
        for note in demo.notes:
            print(note)
        print(
            f"{len(opener.first.index):,} images at http://{_HOST}:{port}/ (stop with Ctrl-C)",
            flush=True,
        )
        if not arguments.no_browser and _has_screen():
            threading.Thread(target=_open_page, args=(port,), daemon=True).start()
        # One person searches: with batches of one alone compiled, the page is ready sooner.
        settings = Settings(
            batch=1, batch_wait=0, hosts=OWN_NAMES, title=demo.title, notes=demo.notes
        )
        server.serve(opener, listener, settings)
    return 0


def _check(arguments: argparse.Namespace, is_own: bool) -> None:
    """Refuse impossible arguments, and a demo without any model, before any work."""
    if arguments.tokenizer and not (is_own and arguments.model):
        raise ValueError(
            "--tokenizer belongs to the CLIP that --model names: give it, and --images"
        )
    if arguments.port is not None and not 0 <= arguments.port <= MOST_PORT:
        raise ValueError(f"--port must be 0 to {MOST_PORT}, not {arguments.port}")
    if is_own and not arguments.model:
        check_installed()


def _garments(model: str | None) -> _Demo:
    """Return the demo of the rendered garments; train its small model if there is none."""
    from cmap_jax.cli import config_files, flags
    from cmap_jax.retrieval.catalogue import Item
    from cmap_jax.workdir.description import read_description
    from input_pipeline.garments import attributes, folder

    workdir = model or flags.default_workdir(_GARMENTS)
    if model is None:
        _train_unless_there(config_files.read(_GARMENTS), workdir)
    description = read_description(workdir)
    data = description.config.data
    if data.name != "garments":
        raise ValueError(
            f"{workdir} was trained on {data.name}, not on the rendered garments: name pictures "
            "for it with --images DIR"
        )
    rendered = folder.prepare(os.path.abspath(data.directory), **data.garments.to_dict())
    garments = map(attributes.garment, range(attributes.COUNT))
    items = [
        Item(g.id, os.path.join(rendered, "images", f"{g.id}.jpg"), dataclasses.asdict(g))
        for g in garments
    ]
    notes = ("Rendered garments, not photographs.",)
    if model is None:
        notes += (
            "Its model is small and was trained for a few steps only: expect rough results. It "
            "knows the words of captions such as “is red and has long sleeves”.",
        )
    return _Demo(
        workdir=workdir,
        items=items,
        index=f"{workdir.rstrip('/')}-index",
        title="Garments",
        notes=notes,
    )


def _train_unless_there(config: Any, workdir: str) -> None:
    """Train in a workdir, with progress, unless it holds a finished run."""
    from cmap_jax.workdir.description import read_config, unfinished

    if read_config(workdir) is not None and not unfinished(workdir):
        return
    print(f"There is no model of garments yet: training a small one in {workdir}", flush=True)
    # TensorFlow takes seconds to load, and only training needs it.
    from cmap_jax.cli import run

    run.run(config, workdir, evaluate_only=False, command="cmap train")


def _own_pictures(arguments: argparse.Namespace) -> _Demo:
    """Return the demo of one's own pictures with the best model that is there."""
    items = _read_items(arguments)
    print(f"{len(items):,} pictures", flush=True)
    model = own_model(arguments.model, arguments.tokenizer, os.path.join(_OWN, "models"))
    source = os.path.abspath(arguments.list or arguments.images)
    name = os.path.basename(os.path.abspath(arguments.images or arguments.list))
    index = os.path.join(_OWN, f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}")
    return _Demo(workdir=model.workdir, items=items, index=index, title=name, notes=model.notes)


def _read_items(arguments: argparse.Namespace) -> list[Any]:
    """Return the pictures; those of a folder of folders say in which one they are."""
    from cmap_jax.retrieval.catalogue import items_of_folder, items_of_list

    if arguments.list:
        return items_of_list(arguments.list, arguments.images)
    items = items_of_folder(arguments.images)
    folders = [item.id.split("/")[:-1] for item in items]
    for depth in range(max(map(len, folders))):
        names = [parts[depth] if depth < len(parts) else None for parts in folders]
        if len(set(names)) > 1:  # the first folders that tell pictures apart
            if 2 * len(set(names)) > len(items):
                break  # almost every picture has one of its own
            return [
                dataclasses.replace(item, metadata={"folder": name})
                for item, name in zip(items, names, strict=True)
            ]
    return items


def _index(demo: _Demo) -> str:
    """Make the index of a demo, or bring it up to date; return its folder."""
    from cmap_jax.retrieval.indexing import build_index
    from cmap_jax.trained import load

    trained = load(demo.workdir)
    # Another model, such as one that was trained anew, has another index.
    folder = f"{demo.index}-{trained.fingerprint[:8]}"
    report = build_index(trained, demo.items, folder, update=True)
    if report.unreadable:
        print(
            f"{report.manifest.unreadable:,} pictures cannot be read and are left out; "
            f"{report.unreadable} lists them with the reasons"
        )
    return folder


def _listen(port: int | None) -> Any:
    """Return a listening socket at a port of this machine.

    Raises:
        OSError: the port is taken, or needs other rights; names it.
    """
    from cmap_jax.serving import server

    try:
        return server.bind(_HOST, _PORT if port is None else port)
    except OSError as error:
        if port is None:
            return server.bind(_HOST, 0)
        reason = getattr(error.__cause__, "strerror", error)
        raise OSError(f"--port {port} cannot be used: {reason}; name another one") from error


def _has_screen() -> bool:
    """Tell whether a browser can be shown; without a screen, one in the terminal would open."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _open_page(port: int) -> None:
    """Open the page in the user's browser as soon as the service is ready."""
    while True:
        connection = http.client.HTTPConnection(_HOST, port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                webbrowser.open(f"http://{_HOST}:{port}/")
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
