"""Captions that say how attributes change, in several phrasings.

phrases = Phrases(("color", "sleeves"))
phrases.one("color", "black", "red", style=2)             # "red instead of black"
phrases.captions([("color", "black", "red"), ("sleeves", "short", "long")], draw)
                                                          # ["is red and has long sleeves"]
"""

import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from input_pipeline.records import DataError

Change = tuple[str, str, str]  # attribute, old value, new value

# Attributes whose values are said of the thing itself, as "is red", and those among them that one
# can be "in".
_COLORS = frozenset(("color", "colour", "shade", "tone"))
_ADJECTIVES = _COLORS | {"pattern", "style", "length", "size", "shape", "gender", "season"}
_MATERIALS = frozenset(("material", "fabric", "cloth", "composition"))
_KINDS = frozenset(("type", "kind", "class", "category", "garment", "item", "article"))
_PLURALS = {"sleeve": "sleeves", "strap": "straps", "pocket": "pockets", "button": "buttons"}
# Parts of a garment, of which "sleeve length" and "heel height" speak.
_PARTS = frozenset(
    (
        *("back", "button", "collar", "cuff", "heel", "hem", "leg", "neck", "neckline", "pocket"),
        *("shoulder", "sleeve", "strap", "toe", "waist"),
    )
)
# Further things that a garment has, for columns of true and false.
_THINGS = _PARTS | {"belt", "hood", "lace", "lining", "logo", "print", "slit", "zip", "zipper"}
_NOTHING = frozenset(("none", "no"))  # values of an attribute that something lacks
_LEAST_STEM = 3  # letters that the end of a value shares with its attribute's name
_FIELDS = frozenset(("old", "new"))  # that a template may name


class _Words(NamedTuple):
    """The forms of a value of an attribute.

    Attributes:
        says: a predicate, as "is red", "has long sleeves".
        should: a wish, as "should be red".
        with_: an addition, as "in red", "with long sleeves".
        make: a demand, as "make it red".
        thing: the value by itself, as "red", "long sleeves".
    """

    says: str
    should: str
    with_: str
    make: str
    thing: str


def _adjective(value: str, with_: str = "") -> _Words:
    return _Words(
        says=f"is {value}",
        should=f"should be {value}",
        with_=with_ or value,
        make=f"make it {value}",
        thing=value,
    )


def _noun(thing: str) -> _Words:
    return _Words(
        says=f"has {thing}",
        should=f"should have {thing}",
        with_=f"with {thing}",
        make=f"give it {thing}",
        thing=thing,
    )


def _lack(thing: str) -> _Words:
    no = f"no {thing}"
    return _noun(no)._replace(with_=f"without {thing}", make=f"make it without {thing}")


def _words(attribute: str, value: str) -> _Words:
    """Return the forms of a text value, by the attribute's name."""
    name = _name(attribute)
    first, _, rest = name.partition(" ")
    if rest and first.removesuffix("s") in _PARTS:
        name = first
    last = name.rpartition(" ")[2]
    if value in _NOTHING:
        return _lack(_PLURALS.get(name, name))
    if last in _ADJECTIVES:
        return _adjective(value, f"in {value}" if last in _COLORS else "")
    if last in _MATERIALS:
        return _Words(
            *(f"{begin} {value}" for begin in ("is made of", "should be made of", "in")),
            f"make it of {value}",
            value,
        )
    if last in _KINDS:
        return _adjective(_with_article(value), f"as {_with_article(value)}")
    stem = last.removesuffix("s")
    end = value.replace("-", " ").rpartition(" ")[2].removesuffix("s")
    if len(end) >= _LEAST_STEM and stem.startswith(end):  # "long sleeves", "v-neck" of a neckline
        return _noun(_with_article(value))
    if stem in value:  # "sleeveless"
        return _adjective(value)
    if stem in _PLURALS or (last.endswith("s") and not last.endswith("ss")):
        return _noun(f"{value} {_PLURALS.get(stem, name)}")
    return _noun(_with_article(f"{value} {name}"))


def _flag_words(attribute: str, value: str) -> _Words:
    """Return the forms of true or false, by the attribute's name."""
    name = _name(attribute)
    is_true = value in ("true", "yes")
    thing = name.removeprefix("has ").removeprefix("with ")
    if thing == name and not _is_thing(name):
        quality = name.removeprefix("is ")
        return _adjective(quality if is_true else f"not {quality}")
    return _noun(thing) if is_true else _lack(thing)


def _is_thing(name: str) -> bool:
    """Tell whether something has this, as pockets or a hood, and is not this, as waterproof."""
    last = name.rpartition(" ")[2]
    is_plural = last.endswith("s") and not last.endswith("ss")
    return not name.startswith("is ") and (is_plural or last in _THINGS)


def _name(attribute: str) -> str:
    """Return a column's name as captions have it."""
    return " ".join(attribute.lower().replace("_", " ").replace("-", " ").split())


# A style -> its phrase of an old and a new value. Phrases of one style can be joined by "and".
_STYLES: tuple[Callable[[_Words, _Words], str], ...] = (
    lambda old, new: new.says,
    lambda old, new: new.with_,
    lambda old, new: f"{new.thing} instead of {old.thing}",
    lambda old, new: new.make,
    lambda old, new: new.should,
)


class Phrases:
    """Captions of changes.

    Attributes:
        styles: number of phrasings.
    """

    def __init__(
        self,
        attributes: Collection[str],
        flags: Collection[str] = (),
        own: Mapping[str, Sequence[str]] | None = None,
    ):
        """Check own phrasings.

        Args:
            attributes: names of all attributes that may change.
            flags: those among them whose values are "true" and "false", or "yes" and "no".
            own: by attribute, templates that replace the phrasings of this module, such as
                ``{"color": ["in {new}", "{new} statt {old}"]}``.

        Raises:
            DataError: a template of an attribute that does not exist, or one that cannot be filled.
        """
        self._flags, self._own = frozenset(flags), dict(own or {})
        for attribute, templates in self._own.items():
            _check_templates(attribute, templates, attributes)
        self.styles = max([len(_STYLES), *map(len, self._own.values())])

    def one(self, attribute: str, old: str, new: str, style: int) -> str:
        """Return the phrase of one change in a style, 0 to ``styles`` - 1."""
        if attribute in self._own:
            templates = self._own[attribute]
            return templates[style % len(templates)].format(old=old, new=new)
        words = _flag_words if attribute in self._flags else _words
        phrase = _STYLES[style % len(_STYLES)]
        return phrase(words(attribute, old), words(attribute, new))

    def captions(self, changes: Sequence[Change], draw: Callable[[int], int]) -> list[str]:
        """Return one caption of all changes, or a caption of each of two.

        Own phrasings, which may be of any language, are not joined.

        Args:
            changes: one or two of them.
            draw: returns a number from 0 to its argument less 1.
        """
        may_join = not any(attribute in self._own for attribute, _, _ in changes)
        if may_join and draw(2):
            style = draw(self.styles)
            return [" and ".join(self.one(*change, style) for change in changes)]
        return [self.one(*change, draw(self.styles)) for change in changes]


def _check_templates(attribute: str, templates: object, known: Collection[str]) -> None:
    where = f"the phrases of {attribute!r}"
    if attribute not in known:
        raise DataError(f"{where}: no such attribute changes; there are {', '.join(known)}")
    if not isinstance(templates, list | tuple) or not templates:
        raise DataError(f"{where} must be a list of texts such as 'in {{new}}'")
    for template in templates:
        try:
            parsed = [part[1:] for part in string.Formatter().parse(template)]
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {template!r:.80} is no template: {error}") from error
        # A format such as "{new:{old}}" would fail, or not, by the values of a catalogue.
        has_format = any(spec or conversion for _, spec, conversion in parsed)
        fields = {field for field, _, _ in parsed if field is not None}
        if "new" not in fields or fields - _FIELDS or has_format:
            raise DataError(
                f"{where}: {template!r:.80} must hold {{new}}, may hold {{old}}, and holds nothing "
                "else in braces"
            )


def _with_article(thing: str) -> str:
    """Return a noun with "a" or "an", unless it is a plural or none."""
    if thing.startswith("no "):
        return thing
    if thing.endswith("s") and not thing.endswith(("ss", "us")):
        return thing
    return f"{'an' if thing[:1] in 'aeiou' else 'a'} {thing}"
