"""Answers that refuse a request: a status and one plain sentence, never a 500."""

from collections.abc import Mapping


class Refused(Exception):  # noqa: N818
    """A request that is not carried out.

    Attributes:
        status: the HTTP status.
        sentence: says to the client what is wrong, without names of files or of code.
        headers: headers of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        """Make the refusal; see the class."""
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})


def busy(sentence: str, seconds: int = 1, *, status: int = 503) -> Refused:
    """Return the refusal of a request that may be sent again after some seconds."""
    return Refused(status, sentence, {"Retry-After": str(max(1, seconds))})


def unread(refusal: Refused) -> Refused:
    """Return a refusal of a request whose body was not read; it closes the connection."""
    refusal.headers["Connection"] = "close"
    return refusal
