"""The service over a retriever of a test, in a thread, with a port of its own."""

import contextlib
import http.client
import threading
import time

from cmap_jax.serving import server
from cmap_jax.serving.settings import Settings


@contextlib.contextmanager
def running(retriever, trusted=(), **settings):
    """Serve in a thread; yield the port."""
    settings = Settings(reload_seconds=0, **settings)
    listener = server.bind("127.0.0.1", 0)

    def opener(_):
        return retriever

    opener.manifest = ""
    made: list[server.Server] = []
    original = server.Server

    class Noted(original):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    server.Server = Noted
    thread = threading.Thread(target=server.serve, args=(opener, listener, settings, trusted))
    thread.start()
    try:
        port = listener.getsockname()[1]
        wait_until_ready(port)
        yield port
    finally:
        server.Server = original
        made[0].should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def wait_until_ready(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if get(port, "/readyz")[0] == 200:
                return
        time.sleep(0.02)
    raise TimeoutError("the service is not ready")


def get(port: int, address: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", address)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content
