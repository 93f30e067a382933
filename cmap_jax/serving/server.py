"""The process that serves: sockets, signals, and connections that do not get anywhere.

serve(Opener("INDEX"), bind("127.0.0.1", 8000), Settings())

SIGTERM and Ctrl-C stop it: no connection is accepted any more, what is in flight is answered, then
the process ends. SIGHUP loads the index again.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cmap_jax.serving.app import Service
from cmap_jax.serving.opening import Opener
from cmap_jax.serving.settings import Settings

_BACKLOG = 256  # connections that the system holds until they are accepted
_KEEP_ALIVE = 15  # seconds that an idle connection stays open between two requests
_BODY = b'{"error": "too many connections are open; try again soon"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Server(uvicorn.Server):
    """A server of one `Service`."""

    def __init__(self, config: uvicorn.Config, service: Service):
        """Take the configuration and the service that it runs."""
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and reload at SIGHUP from then on."""
        await super().startup(sockets=sockets)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGHUP"):  # Python allows handlers there alone
            loop = asyncio.get_running_loop()
            reload, tasks = self.service.generations.reload, set()

            def start() -> None:
                task = loop.create_task(reload())
                tasks.add(task)  # the loop alone would not keep it alive
                task.add_done_callback(tasks.discard)

            loop.add_signal_handler(signal.SIGHUP, start)


class _Impatient:
    """A transport that is cut off some seconds after it was closed.

    Closing alone waits, perhaps forever, until the client has read what was written before.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float):
        self._transport = transport
        self._seconds = seconds
        self._end: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._end is None:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(self._seconds, self._transport.abort)

    def forget(self) -> None:
        """Take the connection as lost."""
        if self._end is not None:
            self._end.cancel()


def protocol_of(settings: Settings, *, has_proxy: bool) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 with limits on connections, and on the time that clients take.

    uvicorn itself would wait forever for a head that is begun and never ends, and for a client that
    does not read its answer.

    Args:
        settings: limits and times.
        has_proxy: whether the connections come from a proxy, which opens many.
    """

    class Limited(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_Impatient(transport, settings.body_seconds))
            if self._is_one_too_many():
                self.transport.write(_FULL)
                self.transport.close()
            self._watch()

        def _is_one_too_many(self) -> bool:
            if len(self.connections) > settings.connections:
                return True
            if has_proxy or self.client is None:
                return False
            own = sum(other.client[:1] == self.client[:1] for other in self.connections)
            return own > settings.client_connections

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(settings.request_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_stall()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._disarm()
            self._forget_stall()
            self.transport.forget()

        def _watch(self) -> None:
            """Close the connection if no request comes in time; a request in flight has its own."""
            in_flight = self.cycle is not None and not self.cycle.response_complete
            if in_flight or self.transport.is_closing():
                self._disarm()
            elif self._deadline is None:
                seconds = max(settings.body_seconds, _KEEP_ALIVE)
                self._deadline = self.loop.call_later(seconds, self.transport.close)

        def _forget_stall(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Limited


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens to an address.

    Args:
        host: name or address of this machine.
        port: 0 for any that is free.

    Raises:
        OSError: the address is taken, is not this machine's, or needs other rights; names it.
    """
    with contextlib.ExitStack() as opened:
        try:
            addresses = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = addresses[0]
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise OSError(
                f"--host {host} --port {port} cannot be listened to: {error.strerror}; name "
                "another port, or a host of this machine"
            ) from error
        opened.pop_all()  # it stays open
    return listener


def serve(
    opener: Opener,
    listener: socket.socket,
    settings: Settings,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve an index until a signal.

    Args:
        opener: opens the index.
        listener: result of `bind`.
        settings: of the service.
        trusted_proxies: addresses whose X-Forwarded-For is believed.

    Raises:
        Exception: the index could not be made ready at the start.
    """

    def stop() -> None:
        server.should_exit = True

    service = Service(opener, opener.manifest, settings, on_failure=stop)
    config = uvicorn.Config(
        service.app,
        http=protocol_of(settings, has_proxy=bool(trusted_proxies)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # the service's own lines say more
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    server = Server(config, service)
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
