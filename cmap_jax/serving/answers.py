"""The forms of answers: JSON, errors of one sentence, and ids in addresses."""

import json
import math
import urllib.parse
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.retriever import Hit
from cmap_jax.serving.edge import FAILED
from cmap_jax.serving.refusals import Refused

LONGEST_SENTENCE = 400  # characters of an error
NO_ITEM = "there is no item of this id"
UNREADABLE = "the picture of this item cannot be read"


def raw_id(request: Request) -> str:
    """Return what follows /items/ in a request's address, as the client encoded it."""
    raw = request.scope["raw_path"].partition(b"?")[0].decode("latin-1")
    return raw.partition("/items/")[2]


def decoded_id(raw: str) -> str:
    """Return an id from an address; refuse one that no item has since it is no text."""
    try:
        return urllib.parse.unquote(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise Refused(404, NO_ITEM) from error


def _address(name: str) -> str:
    """Return the address of the picture of the item with an id."""
    return f"/items/{urllib.parse.quote(name, safe='')}/image"


def item_to_json(item: Item | Hit) -> dict[str, Any]:
    """Return an item in the form of `schemas.Item`."""
    return {"id": item.id, "metadata": finite(dict(item.metadata)), "image": _address(item.id)}


def hit_to_json(hit: Hit) -> dict[str, Any]:
    """Return a result in the form of `schemas.Hit`."""
    return {**item_to_json(hit), "score": float(hit.score), "parts": finite(dict(hit.parts))}


def finite(value: Any) -> Any:
    """Return a value with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer in JSON, in ASCII, which can hold any text of a client."""
    encoded = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(encoded, status, headers, "application/json")


def has_tag(request: Request, tag: str) -> bool:
    """Tell whether the client has the content already, by its header If-None-Match."""
    sent = request.headers.get("if-none-match", "")
    tags = {entry.strip().removeprefix("W/") for entry in sent.split(",")}
    return "*" in tags or f'"{tag}"' in tags


async def answer_refusal(_: Request, refusal: Refused) -> Response:
    """Answer a request that the service refuses."""
    return json_answer({"error": refusal.sentence}, refusal.status, refusal.headers)


async def answer_validation(_: Request, error: RequestValidationError) -> Response:
    """Answer a request with a parameter out of its range; names the first one."""
    first = error.errors()[0]
    field = first["loc"][-1]
    return json_answer({"error": f"{field}: {first['msg']}"[:LONGEST_SENTENCE]}, 422)


async def answer_http_error(_: Request, error: HTTPException) -> Response:
    """Answer a request that no route takes."""
    sentences = {404: "there is nothing at this address", 405: "this address has other methods"}
    sentence = sentences.get(error.status_code, str(error.detail))
    return json_answer({"error": sentence}, error.status_code, error.headers)


async def answer_failure(_: Request, __: Exception) -> Response:
    """Answer a request that ended in a defect, without its reason."""
    return json_answer({"error": FAILED}, 500)
