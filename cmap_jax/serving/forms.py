"""The bodies of `POST /search` and `POST /explain`, read and checked field by field.

with admission.hold(most_bytes(request, settings)):
    form = await read_form(request, settings, SEARCH)

There are limits of bytes and time. Nothing of a body is written to disk, and no name of a file in
it is looked at.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NoReturn

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from cmap_jax.serving.refusals import Refused, unread
from cmap_jax.serving.settings import K_DEFAULT, Settings

SEARCH = ("image", "item", "text", "k", "where")  # fields of a search
EXPLANATION = ("image", "item", "text", "target")  # fields of the explanation of a result

_MOST_WHERE = 20_000  # characters of a filter
_MOST_ID = 4_096  # characters of an item's id
_MOST_FIELDS = 64
_MOST_FIELD_BYTES = 256 * 1024
_NEEDS_A_TEXT = "this model needs a text too"
_NEEDS_A_PICTURE = "this model needs a picture or an item too"
_TEXT_ALONE = "this model makes nothing of a picture: leave it out, and give a text"
_PICTURE_ALONE = "this model makes nothing of a text: leave it out, and give a picture or an item"
# A body that is too large is read on for a while, without being kept: a client that is still
# sending would not see the answer.
_DRAINED = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """A query as the client sent it; pictures are not decoded yet.

    Attributes:
        images: uploaded files.
        items: ids of the gallery.
        text: without spaces at its ends; None where there is none.
        k: number of results.
        where: filter on metadata; None where there is none.
        target: id of the result that is explained; None for a search.
    """

    images: tuple[bytes, ...]
    items: tuple[str, ...]
    text: str | None
    k: int
    where: Mapping[str, Any] | None
    target: str | None = None


class _InMemory(MultiPartParser):
    """A parser that writes no temporary files; the body's size is limited elsewhere."""

    spool_max_size = 1 << 62


def most_bytes(request: Request, settings: Settings) -> int:
    """Return the most bytes of a request's body that are kept in memory."""
    declared = _declared_length(request)
    return settings.upload_bytes if declared is None else min(declared, settings.upload_bytes)


async def read_form(request: Request, settings: Settings, fields: Sequence[str]) -> Form:
    """Read and check the body of a request.

    Args:
        request: its body is read to the end, within the limits.
        settings: the limits.
        fields: names that its fields may have, `SEARCH` or `EXPLANATION`.

    Raises:
        Refused: 400 for a malformed body or field, 408 for one that comes too slowly, 413 for one
            that is too large, 415 for another content type.
    """
    try:
        async with asyncio.timeout(settings.body_seconds):
            return _check(await _parse(request, settings), fields, settings)
    except TimeoutError as error:
        sentence = f"the request's body took longer than {settings.body_seconds:g} seconds"
        raise unread(Refused(408, sentence)) from error
    except ClientDisconnect as error:
        raise Refused(400, "the connection was closed before the body was complete") from error


def check_where(text: str | None) -> Mapping[str, Any] | None:
    """Return a filter from its JSON text; None for none.

    Raises:
        Refused: 400 where it is no JSON object, or too long.
    """
    if text is None or not text.strip():
        return None
    if len(text) > _MOST_WHERE:
        raise Refused(400, f"where has more than {_MOST_WHERE:,} characters")
    try:
        where = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, 'where is not JSON, such as {"color": "red"}') from error
    if not isinstance(where, dict):
        raise Refused(400, 'where is not a JSON object, such as {"color": "red"}')
    return where or None


def check_halves(form: Form, takes: Any) -> None:
    """Refuse a search whose halves the method makes nothing of.

    Args:
        form: the search.
        takes: `Trained.takes` of the model.

    Raises:
        Refused: 400; says which half is missing or too much.
    """
    has_image, has_text = bool(form.images or form.items), form.text is not None
    if not has_image and not has_text:
        raise Refused(400, "a search needs a picture, an item or a text")
    if has_image and has_text and not takes.both:
        half = "a text" if takes.image else "a picture"
        raise Refused(400, f"this model makes nothing of {half}: leave it out")
    if has_image and not has_text and not takes.image:
        raise Refused(400, _NEEDS_A_TEXT if takes.both else _TEXT_ALONE)
    if has_text and not has_image and not takes.text:
        raise Refused(400, _NEEDS_A_PICTURE if takes.both else _PICTURE_ALONE)


def check_explanation(form: Form) -> None:
    """Refuse the explanation of no result, or of one that was found from several pictures.

    Raises:
        Refused: 400.
    """
    if form.target is None:
        raise Refused(400, "the field target, the id of the result to explain, is missing")
    count = len(form.images) + len(form.items)
    if count != 1:
        raise Refused(400, f"a result of one picture can be explained, and here are {count}")


def _declared_length(request: Request) -> int | None:
    """Return the Content-Length; None where it is not declared, or does not count."""
    if "transfer-encoding" in request.headers:
        return None
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else None


async def _parse(request: Request, settings: Settings) -> list[tuple[str, str | bytes]]:
    """Return the body's fields, files as bytes, in their order."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    # Python knows charsets whose decoding takes minutes, and others that give no valid text.
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise unread(Refused(415, "the body's text must be UTF-8"))
    # The parser of URL-encoded bodies looks at each byte in Python: seconds for megabytes of "&".
    if content_type != b"multipart/form-data":
        raise unread(Refused(415, "the body must be multipart/form-data"))
    try:
        async with contextlib.aclosing(_limited(request, settings.upload_bytes)) as stream:
            form = await _InMemory(
                request.headers,
                stream,
                max_files=settings.references,
                max_fields=_MOST_FIELDS,
                max_part_size=_MOST_FIELD_BYTES,
            ).parse()
    except MultiPartException as error:
        raise unread(Refused(400, f"the form is malformed: {error.message}")) from error
    # The parser raises other errors for bodies that are not even nearly of its form.
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise unread(Refused(400, "the form is malformed")) from error
    try:
        return [
            (name, await value.read() if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """Yield the body's pieces, or refuse it once it is too large."""
    sentence = f"the request's body has more than {most:,} bytes"
    if (_declared_length(request) or 0) > _DRAINED * most:
        raise unread(Refused(413, sentence))
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > _DRAINED * most:
            break
        if size <= most:
            yield piece
    if size > most:
        raise unread(Refused(413, sentence))


def _check(sent: list[tuple[str, str | bytes]], fields: Sequence[str], settings: Settings) -> Form:
    """Return the fields by name, each of its type and within its limits."""
    given: dict[str, list[str | bytes]] = {name: [] for name in (*SEARCH, *EXPLANATION)}
    for name, value in sent:
        if name not in fields:
            raise Refused(400, f"unknown field {name[:40]!r}; there are {', '.join(fields)}")
        if isinstance(value, bytes) != (name == "image"):
            kind = "a file" if name == "image" else "text, not a file"
            raise Refused(400, f"the field {name} must be {kind}")
        given[name].append(value)
    for name in ("text", "k", "where", "target"):
        if len(given[name]) > 1:
            raise Refused(400, f"the field {name} is given more than once")
    for name in ("item", "text", "target"):
        if not _is_unicode(given[name]):
            raise Refused(400, f"the field {name} is not valid Unicode")
    if len(given["image"]) + len(given["item"]) > settings.references:
        raise Refused(400, f"a search takes at most {settings.references} pictures and items")
    if any(len(name) > _MOST_ID for name in given["item"] + given["target"]):
        raise Refused(404, "there is no item of this id")
    text = _first(given["text"], "").strip()
    if len(text) > settings.text_characters:
        raise Refused(400, f"the text has more than {settings.text_characters:,} characters")
    return Form(
        images=tuple(given["image"]),
        items=tuple(given["item"]),
        text=text or None,
        k=_check_k(_first(given["k"], str(min(K_DEFAULT, settings.k))), settings.k),
        where=check_where(_first(given["where"], None)),
        target=_first(given["target"], None),
    )


def _check_k(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Refused(400, f"k must be a number from 1 to {most}")
    return int(text)


def _is_unicode(texts: list[str]) -> bool:
    """Tell whether texts can be encoded: none has half of a surrogate pair."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(values: list, otherwise: Any) -> Any:
    return values[0] if values else otherwise


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
