"""The service's HTTP interface.

service = Service(open_retriever, "INDEX/manifest.json", Settings())
service.app                            # an ASGI application; `cmap_jax.serving.server` runs it

Searches are answered once `Service.generations` has loaded the index, which begins with the
application's lifespan.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import cmap_jax
from cmap_jax.processing.image_files import ImageReadError
from cmap_jax.serving import forms, schemas, static_files, thumbnails
from cmap_jax.serving import metrics as metrics_lib
from cmap_jax.serving.admission import Admission
from cmap_jax.serving.answers import (
    LONGEST_SENTENCE,
    UNREADABLE,
    answer_failure,
    answer_http_error,
    answer_refusal,
    answer_validation,
    decoded_id,
    finite,
    has_tag,
    hit_to_json,
    item_to_json,
    json_answer,
    raw_id,
)
from cmap_jax.serving.batching import Unfit, Unreachable
from cmap_jax.serving.edge import Edge
from cmap_jax.serving.forms import Form, check_where, most_bytes, read_form
from cmap_jax.serving.generations import Generations, OpenRetriever
from cmap_jax.serving.keeping import Keeper
from cmap_jax.serving.reading import Reader
from cmap_jax.serving.refusals import Refused, busy, unread
from cmap_jax.serving.settings import Settings

_logger = logging.getLogger(__name__)

_MOST_OFFSET = 1_000_000_000
_LONGEST_TEXT = 20_000  # characters of a query string's value
_EXPLANATIONS = 8  # in flight at once; each takes a large part of a second on a CPU
_OWN_EXPLANATIONS = 4  # in flight at once for one client
_NOTHING_TO_EXPLAIN = "this model has no heat maps of a changed and a kept part of the score"
_KEEP_THUMBNAIL = "private, max-age=60"
_REVALIDATE = "no-cache"


class Service:
    """An index over HTTP.

    Attributes:
        app: the ASGI application.
        generations: the index that is served, and its reloading.
        metrics: what /metrics shows.
        failure: the error with which the first loading ended; None as long as there is none.
    """

    def __init__(
        self,
        open_retriever: OpenRetriever,
        manifest: str,
        settings: Settings,
        on_failure: Callable[[], None] = lambda: None,
    ):
        """Load nothing yet.

        Args:
            open_retriever: opens the index, given the retriever that is served or None.
            manifest: file whose replacement means a new generation of the index.
            settings: limits, times and texts.
            on_failure: called when the index cannot be loaded at the start.
        """
        self._settings = settings
        self.metrics = metrics_lib.Metrics()
        self.generations = Generations(open_retriever, manifest, settings, self.metrics)
        self.failure: Exception | None = None
        self._on_failure = on_failure
        self._admission = Admission(settings, lambda: self.generations.retry_after)
        self.metrics.watch_searches(lambda: self._admission.searches)
        self._look_up_admission = Admission(settings, lambda: 1)
        self._thumbnails = Keeper[bytes](settings.thumbnail_bytes, len)
        self._page = static_files.read_page()
        self._reader = Reader(settings)
        limits = dataclasses.replace(
            settings,
            queue=min(_EXPLANATIONS, settings.queue),
            per_client=min(_OWN_EXPLANATIONS, settings.per_client),
        )
        self._explanations = Admission(limits, lambda: 1, "explanations")
        # One at a time, lest they take the device from searches.
        self._explaining = concurrent.futures.ThreadPoolExecutor(1, "explanations")
        self.app = Edge(self._routes(), settings, self.metrics)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Load the index while the first requests are told to wait, and watch it."""
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self.generations.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.generations.close()
        self._reader.close()
        self._explaining.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        try:
            await self.generations.load()
        except Exception as error:
            self.failure = error
            self._on_failure()

    def _routes(self) -> FastAPI:
        """Return the application with its addresses."""
        app = FastAPI(
            title="cmap_jax",
            description="Search a gallery by a picture and a wanted change.",
            version=cmap_jax.__version__,
            lifespan=self._lifespan,
            docs_url=None,  # FastAPI's pages load scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,
        )
        app.add_exception_handler(Refused, answer_refusal)
        app.add_exception_handler(RequestValidationError, answer_validation)
        app.add_exception_handler(HTTPException, answer_http_error)
        app.add_exception_handler(Exception, answer_failure)
        get = {"methods": ["GET"]}
        app.add_api_route(
            "/search",
            self.search,
            methods=["POST"],
            openapi_extra=schemas.search_body(self._settings.k),
            responses={
                200: {"model": schemas.SearchAnswer},
                **schemas.failures(400, 401, 404, 408, 413, 415, 422, 429, 503),
            },
        )
        app.add_api_route(
            "/explain",
            self.explain,
            methods=["POST"],
            openapi_extra=schemas.explanation_body(),
            responses={
                200: {"model": schemas.Explanation},
                **schemas.failures(400, 401, 404, 408, 413, 415, 422, 429, 503),
            },
        )
        app.add_api_route(
            "/items",
            self.items,
            **get,
            responses={200: {"model": schemas.Items}, **schemas.failures(400, 401, 422, 429, 503)},
        )
        app.add_api_route(
            "/items/{id:path}/image",
            self.image,
            **get,
            openapi_extra=schemas.ITEM_ID,
            responses={
                **schemas.THUMBNAIL,
                **schemas.NOT_MODIFIED,
                **schemas.failures(400, 401, 404, 422, 503),
            },
        )
        app.add_api_route(
            "/items/{id:path}",
            self.item,
            **get,
            openapi_extra=schemas.ITEM_ID,
            responses={200: {"model": schemas.Item}, **schemas.failures(400, 401, 404, 503)},
        )
        app.add_api_route(
            "/about",
            self.about,
            **get,
            responses={200: {"model": schemas.About}, **schemas.failures(400, 401, 503)},
        )
        app.add_api_route("/healthz", self.healthz, **get, responses=schemas.failures(503))
        app.add_api_route("/readyz", self.readyz, **get, responses=schemas.failures(503))
        app.add_api_route(
            "/metrics",
            self.show_metrics,
            **get,
            responses=schemas.PLAIN | schemas.failures(400, 401, 503),
        )
        app.add_api_route("/", self.page, **get, include_in_schema=False)
        app.add_api_route("/page/{name}", self.page, **get, include_in_schema=False)
        return app

    async def search(self, request: Request) -> Response:
        """Return the best images for reference pictures, a text, or both."""
        started = time.perf_counter()
        client = _client_of(request)
        with self.generations.lease() as generation, self._admission.enter(client):
            take = functools.partial(self._reader.search, generation)
            search = await self._read_form(request, forms.SEARCH, take)
            try:
                hits = await asyncio.wrap_future(generation.batcher.submit(search))
            except Unfit as error:
                raise Refused(400, str(error)[:LONGEST_SENTENCE]) from error
            except Unreachable as error:
                raise busy(str(error)) from error
        answer = {
            "hits": [hit_to_json(hit) for hit in hits],
            "took_ms": round(1000 * (time.perf_counter() - started), 1),
        }
        return json_answer(answer)

    async def explain(self, request: Request) -> Response:
        """Return where in its pictures the two parts of a result's score come from."""
        client = _client_of(request)
        with self.generations.lease() as generation, self._explanations.enter(client):
            explainer = generation.explainer
            if explainer is None:
                raise unread(Refused(400, _NOTHING_TO_EXPLAIN))
            take = functools.partial(self._reader.pair, generation, explainer)
            pair = await self._read_form(request, forms.EXPLANATION, take)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._explaining, explainer.explain, *pair)
        return json_answer(answer)

    async def items(
        self,
        request: Request,
        offset: Annotated[int, Query(ge=0, le=_MOST_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 48,
        q: Annotated[str, Query(max_length=_LONGEST_TEXT)] = "",
        where: Annotated[str | None, Query(max_length=_LONGEST_TEXT)] = None,
    ) -> Response:
        """Return a page of the gallery; ``q`` looks for a text in ids and metadata."""
        condition, limit = check_where(where), min(limit, self._settings.page_items)
        if len(q) > self._settings.text_characters:
            raise Refused(400, f"q has more than {self._settings.text_characters:,} characters")
        words = q.strip()
        # A look-up goes through the texts of all items.
        enter = self._look_up_admission.enter if words else contextlib.nullcontext
        read = self._reader.look_up if words else self._reader.read
        with self.generations.lease() as generation, enter(_client_of(request)):
            page = generation.browser.page
            try:
                chosen, total = await read(page, offset, limit, words, condition)
            except ValueError as error:
                raise Refused(400, str(error)[:LONGEST_SENTENCE]) from error
        return json_answer({"items": [item_to_json(item) for item in chosen], "total": total})

    async def item(self, request: Request) -> Response:
        """Return an item; slashes in its id may be percent-encoded."""
        with self.generations.lease() as generation:
            item = await self._reader.find(generation, decoded_id(raw_id(request)))
        return json_answer(item_to_json(item))

    async def image(
        self,
        request: Request,
        size: Annotated[int, Query(ge=1, le=10_000)] = thumbnails.DEFAULT_SIZE,
    ) -> Response:
        """Return a thumbnail of an item's picture; its longest side is ``size`` or a bit more."""
        raw, size = raw_id(request), thumbnails.round_up(size)
        if not raw.endswith("/image"):
            return await self.item(request)  # an id that ends so, with the slash encoded
        name = decoded_id(raw.removesuffix("/image"))
        with self.generations.lease() as generation:
            item = await self._reader.find(generation, name)
            number = generation.retriever.index.manifest.generation
            try:
                tag = await self._reader.read(thumbnails.tag_of, item.image, size, number)
                headers = {"ETag": f'"{tag}"', "Cache-Control": _KEEP_THUMBNAIL}
                if has_tag(request, tag):
                    return Response(status_code=304, headers=headers)
                make = functools.partial(thumbnails.make, item.image, size)
                content = await self._reader.read(self._thumbnails.get, tag, make)
            except ImageReadError as error:
                _logger.warning("a picture of the gallery cannot be read: %s", error)
                raise Refused(404, UNREADABLE) from error
        return Response(content, media_type="image/jpeg", headers=headers)

    async def about(self) -> Response:
        """Return facts of the index and its model, and the fields to filter by."""
        settings = self._settings
        with self.generations.lease() as generation:
            retriever, trained = generation.retriever, generation.retriever.trained
            takes = trained.takes
            answer = {
                "title": settings.title,
                "count": len(retriever.index),
                "variant": trained.config.model.variant,
                "takes": {"image": takes.image, "text": takes.text, "both": takes.both},
                "texts": takes.text or takes.both,
                "explains": generation.explainer is not None,
                "notes": list(settings.notes),
                "fields": finite(generation.browser.fields),
                "limits": {
                    "upload_bytes": settings.upload_bytes,
                    "references": settings.references,
                    "text_characters": settings.text_characters,
                    "k": settings.k,
                },
            }
        return json_answer(answer)

    async def healthz(self) -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "alive"}

    async def readyz(self) -> dict[str, str]:
        """Say that searches are answered; 503 before."""
        if not self.generations.is_ready:
            raise busy("the service is starting; try again soon")
        return {"status": "ready"}

    async def show_metrics(self) -> Response:
        """Return the metrics."""
        content = self.metrics.exposition()
        return Response(content, headers={"Content-Type": metrics_lib.CONTENT_TYPE})

    async def page(self, request: Request, name: str = static_files.INDEX) -> Response:
        """Return a file of the page."""
        file = self._page.get(name)
        if file is None:
            raise Refused(404, "there is nothing at this address")
        headers = {"ETag": f'"{file.tag}"', "Cache-Control": _REVALIDATE}
        if has_tag(request, file.tag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers={**headers, "Content-Type": file.media_type})

    async def _read_form(
        self, request: Request, fields: Sequence[str], take: Callable[[Form], Awaitable[Any]]
    ) -> Any:
        """Return what ``take`` makes of a body, which is gone by then and no longer counted."""
        with self._admission.hold(most_bytes(request, self._settings)):
            return await take(await read_form(request, self._settings, fields))


def _client_of(request: Request) -> str:
    """Return the address of a request's client."""
    return request.client.host if request.client else ""
