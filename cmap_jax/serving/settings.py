"""The settings of the service, with their limits; `cmap serve` has a flag for most of them."""

import dataclasses
import math
import os

K_DEFAULT = 24  # results of a search that does not say how many it wants


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How much the service takes on, and how long it waits.

    Attributes:
        upload_bytes: most bytes of a request's body; more are refused with 413.
        pixels: most pixels of an uploaded picture, width times height.
        references: most pictures or ids of one query.
        text_characters: most characters of a query's text, or of a text that items are looked up
            by.
        k: most results of a search.
        page_items: most items of one page of the gallery.
        batch: most searches that are computed at once.
        batch_wait: seconds that a search waits for others to be computed with.
        queue: most searches at once, from the first byte to the answer; more are refused with 503.
        per_client: most searches of one client at once; more are refused with 429.
        connections: most open connections; more are refused with 503.
        client_connections: most open connections of one address, unless they come by a proxy.
        body_seconds: time for a request's headers, again for its body, and again for a client to
            read the rest of an answer when its connection is closed.
        request_seconds: time for a whole request, the answer included, and again for a client to
            read what keeps the next answer waiting.
        shutdown_seconds: time that a stopping service gives the requests in flight.
        reload_seconds: interval at which the index is looked at for a new generation; 0 to look
            only after a SIGHUP.
        decoders: threads that decode uploads, and as many that make thumbnails.
        thumbnail_bytes: memory for thumbnails that are kept.
        api_key: what clients must send; None lets everybody in.
        hosts: names, without a port, under which the service may be addressed; empty for any.
        title: the page's heading.
        notes: sentences for the page, such as what the model cannot do.

    Raises:
        ValueError: a value is out of its range; names it.
    """

    upload_bytes: int = 16 * 2**20
    pixels: int = 50_000_000
    references: int = 4
    text_characters: int = 1_000
    k: int = 200
    page_items: int = 200
    batch: int = 32
    batch_wait: float = 0.004
    queue: int = 128
    per_client: int = 32
    connections: int = 1_000
    client_connections: int = 250
    body_seconds: float = 15.0
    request_seconds: float = 30.0
    shutdown_seconds: int = 30
    reload_seconds: float = 2.0
    decoders: int = min(4, os.cpu_count() or 1)
    thumbnail_bytes: int = 64 * 2**20
    api_key: str | None = dataclasses.field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    title: str = "Search"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float):
                continue
            least = 0 if field.name in ("batch_wait", "reload_seconds", "thumbnail_bytes") else 1
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{field.name} must be {least} or more, not {value}")
        if self.api_key is not None and not self.api_key:
            raise ValueError("the API key is empty")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Numbers of queries that batches are padded to, ascending."""
        powers = [2**i for i in range(self.batch.bit_length()) if 2**i < self.batch and i != 1]
        return (*powers, self.batch)
