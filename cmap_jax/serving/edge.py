"""Every request and answer goes through here: who may ask, how long it may take, what is logged.

An ASGI application around the service's own, so that nothing inside can leave it out.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cmap_jax.serving.metrics import Metrics
from cmap_jax.serving.refusals import Refused, busy, unread
from cmap_jax.serving.settings import Settings

_logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# No inline script and nothing from elsewhere; pictures that a person drops are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# Probes have no key, and address a container or a pod by its IP. Their answers tell nothing else.
_PROBES = ("/healthz", "/readyz")
_PAGE = "/"  # open to anybody: it asks a person for the key
_PAGE_FILES = "/page/"
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
FAILED = "the service failed; its log has more, under the id in the header X-Request-ID"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_GONE = 499  # status in the log where the client left before the answer
_ELSEWHERE = "elsewhere"  # the route of an address that there is not, for metrics


class Edge:
    """The outermost application."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics):
        """Wrap an application.

        Args:
            app: answers the requests that are let in.
            settings: key, hosts and time limit.
            metrics: receive each request.
        """
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; other kinds of connections belong to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                self._check(scope)
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            await answer.refuse(unread(busy("the answer took too long; try again soon")))
        except asyncio.CancelledError:  # the server does so with what outlives its stop timeout
            await answer.refuse(unread(busy("the service is stopping; try again soon")))
        except Refused as refusal:
            await answer.refuse(unread(refusal))
        except Exception:
            _logger.exception("a request failed", extra={"request": answer.request_id})
            await answer.refuse(unread(Refused(500, FAILED)))
        finally:
            self._record(scope, answer, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Refuse a request to another host, or one that needs the key and does not have it."""
        headers, path = dict(scope["headers"]), scope["path"]
        if path in _PROBES:
            return
        hosts = self._settings.hosts
        # A page from elsewhere can make a browser call this machine under a name of its own.
        if hosts and _host_of(headers.get(b"host", b"")) not in hosts:
            raise Refused(400, "the service is not known by the name in the header Host")
        key = self._settings.api_key
        if key is None or path == _PAGE or path.startswith(_PAGE_FILES):
            return
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), key.encode()):
            sentence = "this needs the API key, in a header Authorization: Bearer KEY"
            raise Refused(401, sentence, {"WWW-Authenticate": "Bearer"})

    def _record(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _ELSEWHERE)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.observe_request(route, method, answer.status, seconds)
        about = {
            "request": answer.request_id,
            "method": method,
            "route": route,
            "status": answer.status,
            "ms": round(1000 * seconds, 1),
            "bytes": answer.bytes,
            "client": (scope.get("client") or ("", 0))[0],
        }
        _logger.info("request", extra=about)


class _Answer:
    """Sends an answer with the service's headers, and knows how far it has come."""

    def __init__(self, scope: Scope, send: Send):
        self._send = send
        self.status = _GONE
        self.bytes = 0
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {**_HEADERS, "x-request-id": self.request_id}
            added = [(name.encode(), value.encode()) for name, value in own.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        else:
            self.bytes += len(message.get("body", b""))
        await self._send(message)  # waits for a client that does not read
        self.status = message.get("status", self.status)

    async def refuse(self, refusal: Refused) -> None:
        if self.status != _GONE:
            return  # the answer has begun, and the connection ends with it
        body = json.dumps({"error": refusal.sentence}).encode()
        headers = {
            **refusal.headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        encoded = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
        start = {"type": "http.response.start", "status": refusal.status, "headers": encoded}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _host_of(header: bytes) -> str:
    """Return the name in a Host header, without the port."""
    return re.sub(r":\d*$", "", header.decode("latin-1")).lower()
