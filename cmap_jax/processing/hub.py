"""Folders of models as Hugging Face stores them, given by path or by an id of its hub.

    folder = fetch("openai/clip-vit-base-patch32", CONFIG, TOKENIZER)

Ids are looked up in the cache of the package ``huggingface_hub`` and downloaded into it. It is
imported for an id alone.
"""

import os
import re
from collections.abc import Sequence

from etils import epath

from cmap_jax.files import read_json

# Names of files; any of them will do.
CONFIG = ("config.json",)
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_PICTURES = ("preprocessor_config.json", "processor_config.json")

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.txt", "*.model")  # configs and tokenizers
_SAFETENSORS, _TORCH = "model*.safetensors", "pytorch_model*.bin"


def is_hub_id(source: str) -> bool:
    """Tell whether a text has the form of an id: "owner/name"."""
    return bool(_ID.fullmatch(source))


def fetch(source: str | os.PathLike, *needed: Sequence[str]) -> epath.Path:
    """Return the folder of a model.

    Args:
        source: a folder, which is returned as it is; or an id.
        needed: `CONFIG`, `WEIGHTS` or `TOKENIZER`; an id's files that are not cached are
            downloaded.

    Raises:
        FileNotFoundError: no such folder, and no such id that is cached or can be downloaded; says
            how to fetch it where there is a network.
        NotADirectoryError: a file.
    """
    folder = epath.Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            f"{folder}: a file, and the folder is needed, with config.json and the weights in it"
        )
    if not is_hub_id(os.fspath(source)):
        raise FileNotFoundError(f"{folder}: no such folder, and not an id such as owner/name")
    return _from_hub(os.fspath(source), needed)


def _from_hub(name: str, needed: Sequence[Sequence[str]]) -> epath.Path:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such folder; to use it as an id of Hugging Face's hub: "
            "pip install huggingface_hub"
        ) from error
    cached = huggingface_hub.try_to_load_from_cache(name, CONFIG[0])
    cached = epath.Path(cached).parent if isinstance(cached, str) else None
    is_enough = cached is not None and _is_complete(cached, needed)
    # Other programs cache weights without this file, and another model's values would be taken.
    if is_enough and _is_complete(cached, [_PICTURES]):
        return cached
    large = [_SAFETENSORS] if WEIGHTS in needed else []
    try:
        folder = _download(name, large)
        if large and not _is_complete(folder, needed):
            folder = _download(name, [_TORCH])
    except Exception as error:  # errors of several libraries, for no network, name or permission
        if is_enough:
            return cached
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        raise FileNotFoundError(_how_to_fetch(name, f"{type(error).__name__}: {reason}")) from error
    if not _is_complete(folder, needed):  # also where there is no network, and part is cached
        missing = next(names for names in needed if not _is_complete(folder, [names]))
        raise FileNotFoundError(_how_to_fetch(name, f"there is no {' or '.join(missing)}"))
    return folder


def _download(name: str, large: Sequence[str]) -> epath.Path:
    import huggingface_hub

    patterns = [*_SMALL_FILES, *large]
    return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))


def _is_complete(folder: epath.Path, needed: Sequence[Sequence[str]]) -> bool:
    return all(any(_is_whole(folder / file) for file in names) for names in needed)


def _is_whole(path: epath.Path) -> bool:
    """Tell whether a file is there, and with an index all the files that it lists."""
    if not path.is_file() or not path.name.endswith(".index.json"):
        return path.is_file()
    return all((path.parent / part).is_file() for part in parts_of_index(path))


def parts_of_index(path: epath.Path) -> list[str]:
    """Return the names of the files that an index of weights lists, sorted.

    Raises:
        ValueError: not an index; names it.
    """
    content = read_json(path)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ValueError(f"{path}: not an index of weights: it has no weight_map of file names")
    parts = sorted(set(names.values()))
    if outside := [part for part in parts if epath.Path(part).name != part]:
        raise ValueError(f"{path}: lists {outside[0]!r}, which is no name of a file beside it")
    return parts


def _how_to_fetch(name: str, reason: str) -> str:
    from huggingface_hub import constants

    local = name.partition("/")[2]
    return (
        f"{name}: no such folder, not whole in the cache {constants.HF_HUB_CACHE}, and not to be "
        f"downloaded ({reason}). Where there is a network: hf download "
        f"{name} --local-dir {local}; then copy {local} here and give its path. Needed of it: "
        f"{_SAFETENSORS} (or {_TORCH}), {', '.join(_SMALL_FILES)}"
    )
