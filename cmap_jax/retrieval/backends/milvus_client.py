"""A connection to Milvus: to a server, or to Milvus Lite, which runs in this process."""

import collections
import contextlib
import importlib
import os
import threading
from collections.abc import Iterator

TOKEN = "CMAP_MILVUS_TOKEN"  # environment variable with the token of a server
LITE = "milvus.db"  # the folder of Milvus Lite's files, beside the record
_CONNECT_SECONDS = 10.0
# Connections by address: Milvus Lite runs once for all that are open to the same files.
_connections: collections.Counter[str] = collections.Counter()
_connecting = threading.Lock()


class Connection:
    """A client with its address.

    Attributes:
        address: URL of the server, or path of Milvus Lite's files.
        client: a `pymilvus.MilvusClient`.
    """

    def __init__(self, uri: str, folder: str):
        """Connect.

        Args:
            uri: URL of a server, whose token is in the environment; empty for Milvus Lite.
            folder: the backend's folder, which has Milvus Lite's files.

        Raises:
            ModuleNotFoundError: a package is not installed.
            OSError: the server cannot be reached, or another process has opened the files.
        """
        if uri:
            self.address, remedy = uri, f"is it running, and does {TOKEN} hold its token?"
        else:
            import_lite()
            self.address = os.path.join(folder, LITE)
            remedy = "does another process search them? Several processes need a server: set uri"
        import pymilvus

        self._is_lite = not uri
        token = os.environ.get(TOKEN, "") if uri else ""
        with _connecting, self.errors(f"; {remedy}"):
            self.client = pymilvus.MilvusClient(self.address, token=token, timeout=_CONNECT_SECONDS)
            _connections[self.address] += 1

    @contextlib.contextmanager
    def errors(self, remedy: str = "") -> Iterator[None]:
        """Turn Milvus's errors in the block into an `OSError` of one line with the address."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            reason = " ".join(str(error.message).split())
            raise OSError(f"Milvus at {self.address}: {reason}{remedy}") from error

    def close(self) -> None:
        """Disconnect; after the last one another process may open Milvus Lite's files."""
        self.client.close()
        with _connecting:
            _connections[self.address] -= 1
            if self._is_lite and not _connections[self.address]:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self.address)


def import_lite() -> None:
    """Refuse to go on without the packages of Milvus Lite; pymilvus would not name them."""
    for package in ("pymilvus", "milvus_lite"):
        importlib.import_module(package)
