"""The folder of rendered garments: written once, in FashionIQ's layout, and recognized later.

It holds `images/ID.jpg` for every combination of attributes,
`captions/cap.garments.{train,val,test}.json` (the test split has targets too),
`image_splits/split.garments.{train,val,test,all}.json`, and `garments.json`: the settings, the
counts, and the exact ceilings of guessing from half of a query (`oracles`). An ID spells the
attributes, as in `dress-red-dotted-long-v-short`, for people; no model sees it.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
from typing import Any

import numpy as np

from input_pipeline.garments import attributes, captions, oracles, rendering

# To be raised whenever the files change for the same settings.
FORMAT_VERSION = 1
STAMP = "garments.json"


def prepare(
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    image_size: int = 72,
    train_triplets: int = 24_000,
    val_queries: int = 1_000,
    test_queries: int = 2_000,
    three_changes: float = 0.2,
) -> pathlib.Path:
    """Renders the data set into a folder, unless it is there already.

    Everything is written beside the folder and renamed into place, so a folder that exists is
    complete. Progress goes to stderr.

    Args:
        directory: the folder to make; may exist if it is empty or holds the same data.
        seed: seed of the split, the triplets and the pictures; not negative.
        image_size: pixels a side.
        train_triplets: annotations for training, each with two captions.
        val_queries: annotations of the validation split.
        test_queries: annotations of the test split.
        three_changes: the fraction of annotations that change three attributes instead of two.

    Returns:
        `directory`.

    Raises:
        ValueError: a setting is out of range; or the folder holds something else, or garments of
            other settings.
        OSError: the disk is full, or nothing may be written there; names the folder.
        RuntimeError: drawing failed; carries the message.
    """
    directory = pathlib.Path(directory)
    settings = {
        "seed": seed,
        "image_size": image_size,
        "train_triplets": train_triplets,
        "val_queries": val_queries,
        "test_queries": test_queries,
        "three_changes": three_changes,
    }
    least = {"seed": 0, "image_size": 16, "train_triplets": 1, "val_queries": 1, "test_queries": 1}
    for name, value in least.items():
        if settings[name] < value:
            raise ValueError(f"{name} is {settings[name]}, less than {value}")
    if not 0 <= three_changes <= 1:
        raise ValueError(f"three_changes is {three_changes}, not a fraction")
    if _is_prepared(directory, settings):
        return directory

    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(directory)
    partial = directory.absolute().with_name(_partial_prefix(directory) + str(os.getpid()))
    try:
        try:
            _write(partial, settings)
        except OSError as error:
            raise OSError(
                f"{directory}: the garments cannot be written: {error.strerror or error}; make "
                "room there, or give another directory"
            ) from error
        try:
            partial.rename(directory)
        except OSError:
            # Another process may have rendered the same data meanwhile.
            if not _is_prepared(directory, settings):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _is_prepared(directory: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Tells whether the folder holds the garments of these settings.

    Returns:
        False where the folder is missing or empty.

    Raises:
        ValueError: it holds something else, or garments of other settings.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    stamp = directory / STAMP
    if not stamp.is_file():
        raise ValueError(
            f"{directory} exists and is no folder of garments (it has no {STAMP}): "
            "give another directory"
        )
    content = json.loads(stamp.read_text(encoding="utf-8"))
    wanted = {"format_version": FORMAT_VERSION, **settings}
    present = {"format_version": content.get("format_version"), **content.get("settings", {})}
    differing = [
        f"{name} is {present.get(name)!r} there and {wanted.get(name)!r} here"
        for name in dict.fromkeys([*wanted, *present])
        if present.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"{directory} holds garments of other settings ({'; '.join(differing)}): "
            "give another directory, or delete it"
        )
    return True


def _partial_prefix(directory: pathlib.Path) -> str:
    # The host is part of the name, because process numbers are unique on one machine only.
    return f".{directory.absolute().name}.partial-{socket.gethostname()}-"


def _remove_stale(directory: pathlib.Path) -> None:
    """Removes folders that killed processes of this machine have left unfinished."""
    prefix = _partial_prefix(directory)
    for folder in directory.absolute().parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix)
        if pid.isdigit() and (int(pid) == os.getpid() or not _is_running(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(directory: pathlib.Path, settings: dict[str, Any]) -> None:
    """Writes the whole data set into a new folder, the stamp last."""
    for name in ("images", "captions", "image_splits"):
        (directory / name).mkdir(parents=True)
    seed, three_changes = settings["seed"], settings["three_changes"]
    members = {"all": np.arange(attributes.COUNT), **attributes.split(seed)}
    ids = [attributes.garment(index).id for index in range(attributes.COUNT)]
    counts: dict[str, dict[str, int]] = {}
    for name, indices in members.items():
        _dump([ids[i] for i in indices], directory / f"image_splits/split.garments.{name}.json")
        counts[name] = {"images": len(indices)}

    sizes = {
        "train": settings["train_triplets"],
        "val": settings["val_queries"],
        "test": settings["test_queries"],
    }
    triplets = {}
    for number, (name, count) in enumerate(sizes.items(), start=1):
        rng = np.random.default_rng([seed, number])
        triplets[name] = list(
            captions.triplets(members[name], count, three_changes=three_changes, rng=rng)
        )
        entries = [
            {"target": t.target.id, "candidate": t.reference.id, "captions": list(t.captions)}
            for t in triplets[name]
        ]
        _dump(entries, directory / f"captions/cap.garments.{name}.json")
        counts[name]["triplets"] = count

    rendering.render(directory / "images", attributes.COUNT, seed, settings["image_size"])
    stamp = {
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "counts": counts,
        "oracles": {
            f"garments/{name}": oracles.ceilings(
                triplets["test"], members[name], three_changes=three_changes
            )
            for name in ("test", "all")
        },
    }
    _dump(stamp, directory / STAMP)


def _dump(content: Any, path: pathlib.Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
