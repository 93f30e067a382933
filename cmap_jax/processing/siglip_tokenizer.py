"""The tokenizer "siglip": the sentencepiece model of SigLIP, or the byte-pair encoding of SigLIP 2.

See docs/method.md, section 4, sub-word tokenizers.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from cmap_jax.processing.pieces import JsonPieces, SentencePieces
from cmap_jax.processing.published_files import PublishedFiles, find_source
from cmap_jax.processing.subwords import JSON, SENTENCEPIECE, SETTINGS, Settings, SubwordTokenizer

_WANTED = "a SigLIP folder (spiece.model or tokenizer.json)"
_POSITIONS = 64
# Kinds of special tokens in `tokenizer_config.json`, with their names where it has none.
_PADDING, _START, _END = ("pad_token", "<pad>"), ("bos_token", "<bos>"), ("eos_token", "<eos>")
# Classes of `transformers` that pad on the left where no file says otherwise.
_PADS_LEFT = ("Siglip2Tokenizer", "GemmaTokenizer")


class SiglipTokenizer(SubwordTokenizer):
    """SigLIP's tokenizer: pieces and an end, always filled up to the model's positions."""

    @classmethod
    def from_data(
        cls, source: str | None, captions: Iterable[str], extra_special: Sequence[str]
    ) -> Self:
        """Read published files; captions add nothing to them.

        Args:
            source: a folder with ``spiece.model`` (SigLIP) or ``tokenizer.json`` (SigLIP 2).
            captions: not used.
            extra_special: not used.

        Raises:
            FileNotFoundError: there are no such files.
            ValueError: a file is damaged or another tokenizer's; names it and the remedy.
        """
        path = find_source(source, "siglip", _WANTED)
        if not path.is_dir():
            raise ValueError(f"{source}: a file; give {_WANTED}")
        if (path / SETTINGS).exists():
            return cls.load(path)
        files = PublishedFiles(path)
        name = next((name for name in (SENTENCEPIECE, JSON) if files.has(name)), None)
        if name is None:
            raise FileNotFoundError(f"{source}: no tokenizer there; give {_WANTED}")
        make = _from_sentencepiece if name == SENTENCEPIECE else _from_json
        try:
            return cls(*make(files))
        except ValueError as error:
            reason = str(error).removeprefix(f"{path / name}: ")
            raise ValueError(
                f"{os.fspath(path / name)}: not SigLIP's tokenizer: {reason}. Give {_WANTED}; a "
                "file that is half downloaded must be fetched again"
            ) from error


def _from_sentencepiece(files: PublishedFiles) -> tuple[bytes, Settings]:
    content = files.read(SENTENCEPIECE)
    pieces = SentencePieces(content)
    if pieces.end < 0:
        raise ValueError("it has no end token")
    settings = Settings(
        file=SENTENCEPIECE,
        positions=files.positions(_POSITIONS),
        after=(pieces.end,),
        unknown=pieces.unknown,
        padding=pieces.end,
    )
    return content, settings


def _from_json(files: PublishedFiles) -> tuple[bytes, Settings]:
    content = files.read_json(JSON)
    model, rules = content.get("model") or {}, files.rules
    is_bpe = model.get("type") == "BPE" and model.get("byte_fallback")
    if not is_bpe and model.get("type") != "Unigram":
        raise ValueError(f"a tokenizer of type {model.get('type')}, without SigLIP's pieces")
    ids = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    padding, end = (ids.get(files.token(*kind)) for kind in (_PADDING, _END))
    if padding is None:
        raise ValueError("it has no padding token")
    direction = (content.get("padding") or {}).get("direction")
    if is_bpe:
        content["normalizer"] = _lower_case(content.get("normalizer"))
        unknown = model["vocab"].get(model.get("unk_token"))
    else:
        unknown = model.get("unk_id")
    content["truncation"] = content["padding"] = None  # the settings have them
    file = json.dumps(content, ensure_ascii=False).encode()
    before, after = JsonPieces(file).around()
    if rules.keys() & {"add_bos_token", "add_eos_token"}:  # they are stronger than the file
        start = ids.get(files.token(*_START))
        before = (start,) if rules.get("add_bos_token") else ()
        after = (end,) if rules.get("add_eos_token") else ()
    side = rules.get("padding_side") or direction or _side(rules.get("tokenizer_class"))
    settings = Settings(
        file=JSON,
        positions=files.positions(_POSITIONS),
        before=before,
        after=after,
        unknown=unknown,
        padding=padding,
        pad_left=side.lower() == "left",
    )
    return file, settings


def _lower_case(normalizer: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a normalizer that makes texts lower-case first, as those were that SigLIP 2 saw."""
    if normalizer and "Lowercase" in json.dumps(normalizer):
        return normalizer
    parts = [{"type": "Lowercase"}, *([normalizer] if normalizer else [])]
    return {"type": "Sequence", "normalizers": parts}


def _side(tokenizer_class: str | None) -> str:
    """Return the side of the padding where no file says it."""
    return "left" if tokenizer_class in _PADS_LEFT else "right"
