"""Reads in threads whatever a request names: items of the gallery, its pictures, and uploads.

reader = Reader(settings)
item = await reader.find(generation, "dresses/1.jpg")
search = await reader.search(generation, form)

No kind of work waits behind another kind's: uploads, pictures of a page of results, look-ups.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cmap_jax.processing.images import ImageReadError, preprocess_image
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.retriever import Query
from cmap_jax.serving.answers import LONGEST_SENTENCE, NO_ITEM, UNREADABLE
from cmap_jax.serving.batching import Search
from cmap_jax.serving.explaining import Explainer, Tokens
from cmap_jax.serving.forms import Form, check_explanation, check_halves
from cmap_jax.serving.generations import Generation
from cmap_jax.serving.pictures import decode
from cmap_jax.serving.refusals import Refused
from cmap_jax.serving.settings import Settings


class Pair(NamedTuple):
    """A result to explain, as `Explainer.explain` takes it."""

    tokens: Tokens
    reference: np.ndarray
    target: np.ndarray


class Reader:
    """Reads for requests, in threads of its own."""

    def __init__(self, settings: Settings):
        """Start no thread yet; ``settings`` say how many."""
        self._pixels = settings.pixels

        def pool(name: str) -> concurrent.futures.ThreadPoolExecutor:
            return concurrent.futures.ThreadPoolExecutor(settings.decoders, thread_name_prefix=name)

        self._decoders, self._readers, self._look_ups = map(
            pool, ("uploads", "gallery", "look-ups")
        )

    def close(self) -> None:
        """Do nothing of what waits any more."""
        for pool in (self._decoders, self._readers, self._look_ups):
            pool.shutdown(wait=False, cancel_futures=True)

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that reads the gallery."""
        return await _run(self._readers, function, *arguments)

    async def look_up(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that goes through the texts of all items."""
        return await _run(self._look_ups, function, *arguments)

    async def find(self, generation: Generation, name: str) -> Item:
        """Return the item with an id, or refuse the request with 404."""
        item = await self.read(generation.browser.item, name)
        if item is None:
            raise Refused(404, NO_ITEM)
        return item

    async def search(self, generation: Generation, form: Form) -> Search:
        """Return a form's search, its pictures decoded and all else checked against the index."""
        retriever = generation.retriever
        check_halves(form, retriever.trained.takes)
        for name in form.items:
            await self.find(generation, name)
        await self._checked(retriever.fields.mask, form.where)
        pictures = [await self._decode(generation, image) for image in form.images]
        query = Query(image=pictures or None, item=list(form.items) or None, text=form.text)
        return Search(query, form.k, form.where)

    async def pair(self, generation: Generation, explainer: Explainer, form: Form) -> Pair:
        """Return the result that a form wants explained, with its two pictures read."""
        check_halves(form, generation.retriever.trained.takes)
        check_explanation(form)
        target = await self.find(generation, form.target)
        tokens = await self._checked(explainer.tokenize, form.text)
        if form.images:
            reference = (await self._decode(generation, form.images[0])).pixels
        else:
            reference = await self._pixels_of(
                generation, await self.find(generation, form.items[0])
            )
        return Pair(tokens, reference, await self._pixels_of(generation, target))

    async def _checked(self, function: Callable[..., Any], argument: Any) -> Any:
        """Call a function whose ValueError is the client's fault."""
        try:
            return await self.read(function, argument)
        except ValueError as error:
            raise Refused(400, str(error)[:LONGEST_SENTENCE]) from error

    async def _decode(self, generation: Generation, upload: bytes) -> Any:
        preprocessing = generation.retriever.trained.preprocessing
        return await _run(self._decoders, decode, upload, preprocessing, self._pixels)

    async def _pixels_of(self, generation: Generation, item: Item) -> np.ndarray:
        """Return the pixels of an item's picture as the model reads them."""
        preprocessing = generation.retriever.trained.preprocessing
        try:
            # A path object reads from buckets too.
            return await self.read(preprocess_image, epath.Path(item.image), preprocessing)
        except ImageReadError as error:
            raise Refused(404, UNREADABLE) from error


async def _run(pool: concurrent.futures.Executor, function: Callable, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
