"""Small tokenizers in the published formats, and texts that are hard for them."""

import gzip
import importlib.metadata
import io
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
from optional import require

CAPTIONS = (
    "is red and longer",
    "has no sleeves and a v-neck",
    "is darker, shiny and more colorful",
    "a photo of a dress with long sleeves 0123456789",
)
START, END = "<|startoftext|>", "<|endoftext|>"
PAIRS_FILE = "bpe_simple_vocab_16e6.txt.gz"


def pairs(captions=CAPTIONS) -> list[tuple[str, str]]:
    """Return pairs that build each word of some captions letter by letter."""
    found = {}
    for word in " ".join(captions).replace(",", "").split():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            found[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
    return list(found)


def write_clip_pairs(folder: pathlib.Path, captions=CAPTIONS) -> pathlib.Path:
    """Write pairs in the format of CLIP's own file, all 256 bytes included."""
    lines = ['"a heading"', *map(" ".join, pairs(captions)), ""]
    path = folder / PAIRS_FILE
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def published_clip_pairs() -> pathlib.Path:
    """Return the path of CLIP's own file, which ships in a package; skip the test without it."""
    try:
        files = importlib.metadata.files("open_clip_torch") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == PAIRS_FILE:
            return pathlib.Path(str(file.locate()))
    message = "open_clip_torch is not installed"
    if os.environ.get("CMAP_REQUIRE_OPTIONAL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def write_clip_folder(folder: pathlib.Path, tokenizer_json: bytes, **config) -> pathlib.Path:
    """Write a CLIP folder as `transformers` does, of the pieces in a ``tokenizer.json``."""
    transformers = require("transformers")
    model = json.loads(tokenizer_json)["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    transformers.CLIPTokenizer(vocab=model["vocab"], merges=merges).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **config}))
    return folder


def write_siglip_folder(folder: pathlib.Path) -> pathlib.Path:
    """Write a SigLIP folder with a sentencepiece model, as `transformers` does."""
    sentencepiece, transformers = require("sentencepiece"), require("transformers")
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_writer=content,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "spiece.model").write_bytes(content.getvalue())
    transformers.SiglipTokenizer(str(folder / "spiece.model")).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    return folder


def write_siglip2_folder(folder: pathlib.Path, kind="Siglip2Tokenizer", **rules) -> pathlib.Path:
    """Write a SigLIP 2 folder with byte-pair encoding, as `transformers` does."""
    transformers = require("transformers")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted({*"".join(CAPTIONS).replace(" ", "\u2581")})
    merges = [
        (a, b.removesuffix("</w>")) for a, b in pairs() if (a + b).removesuffix("</w>").isalpha()
    ]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), *letters]
    pieces += list(dict.fromkeys(a + b for a, b in merges))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    make = getattr(transformers, kind)
    make(vocab=vocabulary, merges=merges, **rules).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    return folder


def odd_texts() -> list[str]:
    """Return 200 texts in many scripts, with emoji, marks and white space of all kinds."""
    fixed = [
        *(
            "",
            " ",
            "\n",
            "?!",
            "red",
            " Red  DRESS ",
            "it's don't we'll I'd",
            "12,345.67",
            "\u2581 a",
        ),
        *(
            "caf\u00e9",
            "cafe\u0301",
            "\ufb01ne \uff26\uff35\uff2c\uff2c",
            "\u0130STANBUL stra\u00dfe",
        ),
        *(
            "\u7ea2\u8272 \u957f\u8896",
            "\U0001f457\U0001f469\U0001f3fd\u200d\U0001f3a8",
            "\u0645\u0631\u062d\u0628\u0627",
        ),
        *("a\tb\nc\u3000d\u00a0e", "\x00\x07 red", "a\u200bb", "<red> </p> &amp; %20", "_" * 90),
        *(
            "red " * 300,
            "antidisestablishmentarianism" * 30,
            "\U0001f457" * 100,
            "v-neck/sleeve\\less",
        ),
    ]
    rng = np.random.default_rng(16)
    ranges = [
        (32, 127),
        (160, 592),
        (880, 1424),
        (0x4E00, 0x4F00),
        (0x1F300, 0x1F650),
        (0x2000, 0x2070),
    ]
    words = " ".join(CAPTIONS).split()
    texts = [*fixed, *CAPTIONS]
    for number in itertools.count():
        if len(texts) == 200:
            return texts
        first, last = ranges[number % len(ranges)]
        letters = map(chr, rng.integers(first, last, rng.integers(1, 40)))
        mixed = ["".join(letters), *rng.choice(words, rng.integers(0, 30))]
        texts.append(" ".join(rng.permutation(mixed)))
