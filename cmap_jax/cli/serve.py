"""Serve an index over HTTP: a page to search with, and an interface for programs.

cmap serve INDEX
cmap serve INDEX --model runs/shop --host 0.0.0.0 --port 80 --api-key-file key.txt
CMAP_API_KEY=... cmap serve INDEX --host 10.0.0.5 --trust-proxy 10.0.0.1

docs/serving.md says how to run it behind a proxy, and how to give it a new index.
"""

import argparse
import os
import string
import sys

from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.files import read_text
from cmap_jax.serving.settings import Settings

_KEY = "CMAP_API_KEY"
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine, in a header Host
_MOST_PORT = 65535
_VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    default = Settings()
    parser.add_argument("index", type=path, help="the folder that cmap index wrote")
    parser.add_argument(
        "--model",
        metavar="WORKDIR",
        type=path,
        help="the folder of its model; default: the one that the index names",
    )
    parser.add_argument(
        "--host", default=_THIS_MACHINE[0], help="address to listen to; default 127.0.0.1"
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 for a free one")
    parser.add_argument("--title", default=default.title, help="heading of the page")
    parser.add_argument(
        "--note",
        metavar="SENTENCE",
        action="append",
        default=[],
        help="a sentence for the page; may be repeated",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=path,
        help=f"a file with the key that clients must send; or set {_KEY}",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name that clients may address the service by, such as shop.example.com; may be "
        "repeated. Default: this machine's own with a local --host, else any",
    )
    parser.add_argument(
        "--trust-proxy",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="a proxy whose X-Forwarded-For is believed; may be repeated",
    )
    _add_limits(parser, default)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = _settings(arguments)
    if not 0 <= arguments.port <= _MOST_PORT:
        raise ValueError(f"--port must be 0 to {_MOST_PORT}, not {arguments.port}")
    check_devices()
    # FastAPI and uvicorn come with an extra, hence the imports in here.
    from cmap_jax.serving import logs, server
    from cmap_jax.serving.opening import Opener

    listener = server.bind(arguments.host, arguments.port)
    use_compilation_cache(None)
    opener = Opener(arguments.index, arguments.model)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(
        f"{len(opener.first.index):,} images at http://{host}:{listener.getsockname()[1]}/ "
        "(ready when /readyz says so; stop with Ctrl-C)",
        flush=True,
    )
    if settings.api_key is None and arguments.host not in _THIS_MACHINE:
        sys.stderr.write(
            f"cmap serve: everybody who reaches {arguments.host} can search and see the pictures; "
            f"set {_KEY} or give --api-key-file to ask for a key\n"
        )
    logs.log_as_json()
    server.serve(opener, listener, settings, arguments.trust_proxy)
    return 0


def _add_limits(parser: argparse.ArgumentParser, default: Settings) -> None:
    limits = parser.add_argument_group("limits")

    def add(flag: str, value: float, text: str) -> None:
        limits.add_argument(flag, type=type(value), default=value, help=f"{text}; default {value}")

    add("--max-upload-mb", default.upload_bytes / 2**20, "MiB of a request")
    add("--max-megapixels", default.pixels / 1e6, "millions of pixels of an uploaded picture")
    add("--max-references", default.references, "pictures and ids of a query")
    add("--max-text", default.text_characters, "characters of a query's text")
    add("--max-k", default.k, "results of a search")
    add("--batch", default.batch, "searches computed at once")
    add("--queue", default.queue, "searches in flight at once; then the answer is 503")
    add("--per-client", default.per_client, "searches of one client at once; then it is 429")
    add("--connections", default.connections, "open connections; then the answer is 503")
    add("--timeout", default.request_seconds, "seconds for a request; then the answer is 503")
    add("--body-timeout", default.body_seconds, "seconds for a request's body to arrive")
    add("--stop-timeout", default.shutdown_seconds, "seconds for requests in flight when stopping")
    add(
        "--reload-seconds",
        default.reload_seconds,
        "interval at which the index is looked at for an update; 0: only after a SIGHUP",
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings that the arguments ask for."""
    is_local = arguments.host in _THIS_MACHINE
    try:
        return Settings(
            upload_bytes=int(arguments.max_upload_mb * 2**20),
            pixels=int(arguments.max_megapixels * 1e6),
            references=arguments.max_references,
            text_characters=arguments.max_text,
            k=arguments.max_k,
            batch=arguments.batch,
            queue=arguments.queue,
            per_client=arguments.per_client,
            connections=arguments.connections,
            request_seconds=arguments.timeout,
            body_seconds=arguments.body_timeout,
            shutdown_seconds=arguments.stop_timeout,
            reload_seconds=arguments.reload_seconds,
            api_key=_api_key(arguments.api_key_file),
            hosts=(*(OWN_NAMES if is_local else ()), *map(str.lower, arguments.allow_host)),
            title=arguments.title,
            notes=tuple(arguments.note),
        )
    except OverflowError as error:  # infinity
        raise ValueError(f"a limit is too large: {error}") from error


def _api_key(file: str | None) -> str | None:
    """Return the key of a file or of the environment; None where neither has one.

    Raises:
        OSError, ValueError: the file cannot be read, or the key cannot be sent in a header.
    """
    if file and _KEY in os.environ:
        raise ValueError(f"both {_KEY} and --api-key-file give a key: leave one out")
    if file:
        source, key = file, read_text(file).strip()
    elif _KEY in os.environ:
        source, key = _KEY, os.environ[_KEY].strip()
    else:
        return None
    if not key or not _VISIBLE.issuperset(key):
        raise ValueError(f"{source}: a key is letters, digits and signs of ASCII, without spaces")
    return key
