"""The forms of requests and answers, for the OpenAPI description at /openapi.json."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from cmap_jax.serving.settings import K_DEFAULT

_OVERLAYS = (
    "For each of the parts modified and preserved its heat map over the picture, a JPEG in base64; "
    "null where no region raises the score."
)
Value = str | int | float | bool | list[str] | None


class Item(BaseModel):
    """A picture of the gallery."""

    id: str
    metadata: dict[str, Value]
    image: str = Field(description="Address of its thumbnail.")


class Hit(Item):
    """A result of a search."""

    score: float
    parts: dict[str, float | None] = Field(description="The terms of the score; they sum to it.")


class SearchAnswer(BaseModel):
    """The results of a search, best first."""

    hits: list[Hit]
    took_ms: float


class Explanation(BaseModel):
    """Where in its pictures the two parts of a result's score come from."""

    parts: dict[str, float | None] = Field(description="The terms of the score, as a search's.")
    levels: list[str] = Field(description="The levels that the heat maps are the sum of.")
    reference: dict[str, str | None] = Field(description=_OVERLAYS)
    target: dict[str, str | None] = Field(description=_OVERLAYS)
    scale: str = Field(description="The colors from the least to the most heat; a JPEG in base64.")


class Items(BaseModel):
    """A page of the gallery."""

    items: list[Item]
    total: int = Field(description="Number of all items that match.")


class Takes(BaseModel):
    """The halves of a query that the method makes something of."""

    image: bool
    text: bool
    both: bool


class About(BaseModel):
    """Facts of the index and its model, for a page."""

    title: str
    count: int
    variant: str
    takes: Takes
    texts: bool = Field(description="Whether a text plays any part.")
    explains: bool = Field(description="Whether POST /explain has anything to show.")
    notes: list[str]
    fields: dict[str, Any] = Field(description="The metadata fields that filters can use.")
    limits: dict[str, int]


class Failure(BaseModel):
    """A request that was not carried out."""

    error: str = Field(description="One plain sentence.")


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of some statuses."""
    return {status: {"model": Failure} for status in statuses}


THUMBNAIL = {200: {"content": {"image/jpeg": {}}, "description": "A JPEG."}}
NOT_MODIFIED = {304: {"description": "The client has this thumbnail."}}
PLAIN = {200: {"content": {"text/plain": {}}, "description": "Metrics in Prometheus' format."}}

# The id is read from the undecoded path, and any text is one: FastAPI has nothing to check.
ITEM_ID = {
    "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
}


_QUERY = {
    "image": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Reference pictures; their mean is the reference.",
    },
    "item": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Ids of the gallery, as reference pictures.",
    },
    "text": {"type": "string", "description": "The wanted change."},
}


def search_body(most_k: int) -> dict[str, Any]:
    """Return the body of a search with at most ``most_k`` results.

    FastAPI would read the body itself, without limits.
    """
    count = {"minimum": 1, "maximum": most_k, "default": min(K_DEFAULT, most_k)}
    where = 'A filter in JSON, such as {"color": "red"}.'
    fields = {
        **_QUERY,
        "k": {"type": "integer", **count},
        "where": {"type": "string", "description": where},
    }
    return _body(fields)


def explanation_body() -> dict[str, Any]:
    """Return the body of a request for the explanation of a result."""
    target = {"type": "string", "description": "Id of the result whose score is explained."}
    return _body({**_QUERY, "target": target}, ["text", "target"])


def _body(fields: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return a multipart form of some fields."""
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": fields,
        "required": list(required),
    }
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
