"""The forms of requests and answers, for the OpenAPI description at /openapi.json."""

from typing import Any

from pydantic import BaseModel, Field

from cmap_jax.serving.settings import K_DEFAULT

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


def search_body(most_k: int) -> dict[str, Any]:
    """Return the body of a search with at most ``most_k`` results.

    FastAPI would read the body itself, without limits.
    """
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
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
                            "k": {
                                "type": "integer",
                                "minimum": 1,
                                "maximum": most_k,
                                "default": min(K_DEFAULT, most_k),
                            },
                            "where": {
                                "type": "string",
                                "description": 'A filter in JSON, such as {"color": "red"}.',
                            },
                        },
                    }
                }
            },
        }
    }
