"""Serve an index over HTTP: a page to search with, and an interface for programs.

cmap serve INDEX
cmap serve INDEX --model runs/shop --host 0.0.0.0 --port 80 --api-key-file key.txt
CMAP_API_KEY=... cmap serve INDEX --host 10.0.0.5 --trust-proxy 10.0.0.1

docs/serving.md says how to run it behind a proxy, and how to give it a new index.
"""

import argparse
import contextlib
import ipaddress
import math
import os
import re
import signal
import string
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.files import read_text
from cmap_jax.serving.settings import Settings

_KEY = "CMAP_API_KEY"
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")  # this machine, in a header Host
MOST_PORT = 65535
_HOST = re.compile(r"[^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\]")  # a name, or an IPv6 address in brackets
_VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


class _Limit(NamedTuple):
    """A flag that sets a field of the settings: its value times ``scale``."""

    flag: str
    field: str
    meaning: str
    scale: int = 1


_LIMITS = (
    _Limit("--max-upload-mb", "upload_bytes", "MiB of a request", 2**20),
    _Limit("--max-megapixels", "pixels", "millions of pixels of an uploaded picture", 10**6),
    _Limit("--max-references", "references", "pictures and ids of a query"),
    _Limit("--max-text", "text_characters", "characters of a query's text"),
    _Limit("--max-k", "k", "results of a search"),
    _Limit("--batch", "batch", "searches computed at once"),
    _Limit("--queue", "queue", "searches in flight at once; then the answer is 503"),
    _Limit("--per-client", "per_client", "searches of one client at once; then it is 429"),
    _Limit("--connections", "connections", "open connections; then the answer is 503"),
    _Limit(
        "--client-connections",
        "client_connections",
        "open connections of one client; then the answer is 503",
    ),
    _Limit("--timeout", "request_seconds", "seconds for a request; then the answer is 503"),
    _Limit("--body-timeout", "body_seconds", "seconds for a request's body to arrive"),
    _Limit("--stop-timeout", "shutdown_seconds", "seconds for what is in flight at the end"),
    _Limit(
        "--reload-seconds",
        "reload_seconds",
        "interval at which the index is looked at for an update; 0: only after a SIGHUP",
    ),
)


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
        help="address or network of a proxy whose X-Forwarded-For is believed; may be repeated",
    )
    _add_limits(parser, default)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = _settings(arguments)
    if not 0 <= arguments.port <= MOST_PORT:
        raise ValueError(f"--port must be 0 to {MOST_PORT}, not {arguments.port}")
    _check_names(arguments)
    check_devices()
    # FastAPI and uvicorn come with an extra, hence the imports in here.
    from cmap_jax.serving import logs, server
    from cmap_jax.serving.opening import Opener

    use_compilation_cache(None)
    with server.bind(arguments.host, arguments.port) as listener:
        with _ended_by_sigterm():
            opener = Opener(arguments.index, arguments.model)
        _say_where(arguments.host, listener.getsockname()[1], len(opener.first.index))
        if settings.api_key is None and arguments.host not in _THIS_MACHINE:
            sys.stderr.write(
                f"cmap serve: everybody who reaches {arguments.host} can search and see the "
                f"pictures; set {_KEY} or give --api-key-file to ask for a key\n"
            )
        logs.log_as_json()
        server.serve(opener, listener, settings, arguments.trust_proxy)
    return 0


def _check_names(arguments: argparse.Namespace) -> None:
    """Refuse hosts and proxies that no request would ever have."""
    for name in arguments.allow_host:
        if not _HOST.fullmatch(name):
            raise ValueError(
                f"--allow-host takes a name alone, such as shop.example.com, not {name!r}"
            )
    for address in arguments.trust_proxy:
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            raise ValueError(
                "--trust-proxy takes an IP address or a network, such as 10.0.0.1 or 10.0.0.0/8, "
                f"not {address!r}"
            ) from error


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End the process at a SIGTERM in the block, which a container's first one would ignore."""

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_where(host: str, port: int, images: int) -> None:
    name = f"[{host}]" if ":" in host else host
    when = "ready when /readyz says so; stop with Ctrl-C"
    print(f"{images:,} images at http://{name}:{port}/ ({when})", flush=True)


def _add_limits(parser: argparse.ArgumentParser, default: Settings) -> None:
    limits = parser.add_argument_group("limits")
    for flag, field, meaning, scale in _LIMITS:
        value = getattr(default, field)
        value = value if scale == 1 else value / scale
        text = f"{meaning}; default {value:g}"
        limits.add_argument(flag, dest=field, type=type(value), default=value, help=text)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings that the arguments ask for.

    Raises:
        OSError, ValueError: a value is impossible; names the flag.
    """
    own_names = OWN_NAMES if arguments.host in _THIS_MACHINE else ()
    limits = {field: _scaled(arguments, field, scale) for _, field, _, scale in _LIMITS}
    try:
        return Settings(
            **limits,
            api_key=_api_key(arguments.api_key_file),
            hosts=(*own_names, *map(str.lower, arguments.allow_host)),
            title=arguments.title,
            notes=tuple(arguments.note),
        )
    except ValueError as error:
        flags = {limit.field: limit.flag for limit in _LIMITS}
        field, _, rest = str(error).partition(" ")
        raise ValueError(f"{flags.get(field, field)} {rest}") from error


def _scaled(arguments: argparse.Namespace, field: str, scale: int) -> float:
    """Return a limit in the settings' unit; what is no finite number is left for their check."""
    value = getattr(arguments, field)
    return value if scale == 1 or not math.isfinite(value) else int(value * scale)


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
