"""The record beside a checkpoint's arrays: whose they are, and that nobody has changed it.

    "run"          the mark of the run's config; see `same_run.mark_of_run`
    "step"         training steps of the arrays
    "fingerprint"  checksums of the arrays
    "progress"     facts about the run so far, beside a state
    "describes"    the content of the workdir's files on which the arrays' meaning depends
    "digest"       a checksum of all the others

Whatever reads a checkpoint compares the record with the files around it. Records of earlier
versions have neither "step" nor "describes" nor "digest", and then only the mark is compared.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from cmap_jax.config_fields import Kind, differences
from cmap_jax.files import check_regular_files, read_json
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizing import Tokenizer
from cmap_jax.workdir import renamed_fields
from cmap_jax.workdir.description import CONFIG, MODEL, Description, read_config, read_description
from cmap_jax.workdir.same_run import mark_of_run

_LONG = 100  # characters of a fact's value, above which its digest is recorded in its place


def make(
    mark: str,
    step: int,
    fingerprint: Mapping[str, int],
    describes: Mapping[str, Any] | None,
    **further: Any,
) -> dict[str, Any]:
    """Return a record, a JSON object.

    Args:
        mark: identifies the run.
        step: training steps of the arrays.
        fingerprint: checksums of the arrays.
        describes: the result of `describe`; None: nothing describes the model.
        further: other parts, JSON values.
    """
    about = {"run": mark, "step": step, "fingerprint": fingerprint, **further}
    if describes is not None:
        about["describes"] = describes
    about = json.loads(json.dumps(about))
    return {**about, "digest": _digest(about)}


def read(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Read the record of a checkpoint, and check that it is whole and of its folder's step.

    Args:
        manager: the manager of the folder of checkpoints.
        step: the checkpoint's number.

    Raises:
        ValueError: it is damaged, or the folder has another step's number; or a file of the
            checkpoint is no regular file.
        FileNotFoundError, KeyError: a part of the checkpoint is missing.
    """
    check_regular_files(manager.directory / str(step))
    args = ocp.args.Composite(about=ocp.args.JsonRestore())
    try:
        about = manager.restore(step, args=args)["about"]
        check_form(about)
    except RecursionError as error:
        raise ValueError("its record is damaged: JSON nested too deeply") from error
    check_number(about.get("step", step), step)
    return about


def check_form(about: Any) -> None:
    """Refuse a record with values of other types, or with another digest than its content has.

    Raises:
        ValueError: says which part is damaged.
    """
    if not isinstance(about, dict):
        raise ValueError("its record is damaged: no JSON object")
    types = {"run": str, "step": int, "fingerprint": dict, "describes": dict, "digest": str}
    for name, kind in types.items():
        is_needed = name in ("run", "fingerprint")
        if (name in about or is_needed) and type(about.get(name)) is not kind:
            raise ValueError(f'its record is damaged: "{name}" is {about.get(name)!r:.40}')
    kept = {name: value for name, value in about.items() if name != "digest"}
    if "digest" in about and about["digest"] != _digest(kept):
        raise ValueError("its record is damaged: it is not what was saved")


def check_number(actual: int, step: int) -> None:
    """Refuse a checkpoint whose folder has another number than its arrays have steps.

    Raises:
        ValueError: says how to rename the folder.
    """
    if actual != step:
        raise ValueError(
            f"the folder is named {step}, but what it holds is of step {actual}; rename it to "
            f"{actual}"
        )


def describe(description: Description) -> dict[str, Any]:
    """Return the content of a workdir's files on which the meaning of a model's arrays depends.

    The protocols and versions in ``model.json`` are no part of it, since a later version of this
    library may write others when a run continues.
    """
    facts = {name: _shortened(value) for name, value in description.facts.items()}
    about = {
        "config": description.config.to_dict(),
        "preprocessing": description.preprocessing.to_dict(),
        "tokenizer": digests_of_files(description.tokenizer),
        "facts": facts,
    }
    return json.loads(json.dumps(about))


def check_same(
    about: Mapping[str, Any], mark: str | None, describes: Mapping[str, Any] | None
) -> None:
    """Refuse arrays that were saved under another description of the model.

    Args:
        about: their record, as `read` returns it.
        mark: the run's mark today; None: it is not known.
        describes: the result of `describe` today; None: it is not known.

    Raises:
        ValueError: names the files and fields that differ.
    """
    if describes is not None and "describes" in about:
        lines = _differing(about["describes"], describes)
    else:
        lines = [f"{CONFIG} has another mark"] if mark not in (None, about["run"]) else []
    if lines:
        raise ValueError(
            f"it belongs to another run, or files beside it were changed: {'; '.join(lines)}. Put "
            "back what was changed. A model that is meant to differ is a new run in a folder of "
            "its own, which may start from these weights"
        )


def check_workdir(about: Mapping[str, Any], workdir: str | os.PathLike) -> None:
    """Refuse arrays that do not belong to the files of their workdir.

    Args:
        about: their record, as `read` returns it.
        workdir: a folder; without a config it describes nothing, and nothing is compared.

    Raises:
        ValueError: names the files and fields that differ; or a broken file.
    """
    config = read_config(workdir)
    if config is None:
        return
    has_old_names = renamed_fields.has_old_names(read_json(epath.Path(workdir) / CONFIG))
    # Earlier versions made the mark with the old names.
    mark = None if has_old_names else mark_of_run(config)
    check_same(about, mark, describe(read_description(workdir)))


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each field or file that differs and may not."""
    config = renamed_fields.translate(then["config"])
    lines = [f"{CONFIG}: {line}" for line in differences(config, now["config"], Kind.RUN)]
    # Fields that the version which wrote the record did not have have their defaults.
    preprocessing = ImagePreprocessing.from_dict(then["preprocessing"]).to_dict()
    lines += _changes(f"{MODEL}: preprocessing.", preprocessing, now["preprocessing"])
    # A later version may know more facts.
    facts = {name: now["facts"].get(name) for name in then["facts"]}
    lines += _changes(f"{MODEL}: facts.", then["facts"], facts)
    files = dict.fromkeys([*then["tokenizer"], *now["tokenizer"]])
    changed = [file for file in files if then["tokenizer"].get(file) != now["tokenizer"].get(file)]
    return lines + [f"{file}: another content" for file in changed]


def _changes(prefix: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{prefix}{name}: {then.get(name)!r} there, {now.get(name)!r} now"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _shortened(value: Any) -> str:
    """Return a fact as JSON, or its digest where that is long."""
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONG else f"sha256 {_digest(value)[:16]}"


def digests_of_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Return a digest of each file, by name, that a tokenizer writes into a workdir.

    A digest has the first 16 hexadecimal digits of the SHA-256.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for path in sorted(epath.Path(folder).iterdir())
        }
