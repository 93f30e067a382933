"""Whether data fit a config, and whether they are those of the run that a workdir holds."""

import os
from typing import Any

from ml_collections import ConfigDict

from cmap_jax.facts import DataFacts
from cmap_jax.protocols import Protocol
from cmap_jax.workdir import description as workdir_lib


def fit_vocabulary(config: ConfigDict, tokenizer: Any) -> ConfigDict:
    """Return a copy of the config with the vocabulary's size filled in.

    Args:
        config: a whole config.
        tokenizer: the tokenizer of the data.

    Raises:
        ValueError: the config names another size, or the text encoder has fewer positions than the
            tokenizer's texts may have tokens.
    """
    text = config.model.text
    size = text.vocabulary_size
    if size is not None and size != len(tokenizer):
        counted = (
            f"the data's vocabulary has {len(tokenizer)} words; leave the field unset to take the "
            "data's"
        )
        published = (
            f"the tokenizer {text.tokenizer} of {text.tokenizer_path or text.init_from} has "
            f"{len(tokenizer)} ids: give the model's own with --config.model.text.tokenizer_path"
        )
        raise ValueError(
            f"config.model.text.vocabulary_size is {size}, but "
            f"{counted if tokenizer.counts_words else published}"
        )
    positions = text.get(text.name, {}).get("positions")
    if positions is not None and (tokenizer.limit or 0) > positions:
        raise ValueError(
            f"config.model.text.{text.name}.positions is {positions}, but the texts of the "
            f"tokenizer {text.tokenizer} have up to {tokenizer.limit} tokens: set it to "
            f"{tokenizer.limit}, or give the model's own with --config.model.text.tokenizer_path"
        )
    config = config.copy_and_resolve_references()
    config.model.text.vocabulary_size = len(tokenizer)
    return config


def check_same_data(datasets: Any, workdir: str | os.PathLike) -> None:
    """Refuse to continue on other data: their order, words and steps would not be the run's.

    Args:
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: folder of the run; one that is no workdir yet is accepted.

    Raises:
        ValueError: the data differ; says in which way.
    """
    if workdir_lib.read_config(workdir) is None:
        return
    old = workdir_lib.read_description(workdir)
    problem = None
    if old.tokenizer != datasets.tokenizer:
        problem = "the captions give other words than its tokenizer has"
        if not old.tokenizer.counts_words:
            problem = "config.model.text.tokenizer_path has other files than its tokenizer"
    elif (ours := old.preprocessing.read_as) != (theirs := datasets.preprocessing.read_as):
        problem = (
            f"its pictures were read as {ours}, these as {theirs}: --config.data.read_as={ours}"
        )
    else:
        problem = "; ".join(DataFacts.from_dict(old.facts).differences(datasets.facts))
    if problem:
        raise ValueError(
            f"{os.fspath(workdir)} holds a run on other data: {problem}. Restore the data, or "
            "choose another folder with --workdir=..."
        )


def rules_have_changed(datasets: Any, workdir: str | os.PathLike) -> bool:
    """Tell whether a protocol has other rules than those by which a run chose its best.

    Args:
        datasets: the result of `input_pipeline.create_datasets`.
        workdir: folder of a run that has saved a state.
    """
    old = {p.name: p for p in workdir_lib.read_description(workdir).protocols}
    return any(old.get(p.name, p) != p for p in protocols_of(datasets))


def protocols_of(datasets: Any) -> tuple[Protocol, ...]:
    """Return the protocols of all evaluations; the first one chooses the best checkpoint.

    Args:
        datasets: the result of `input_pipeline.create_datasets`.
    """
    return tuple(e.protocol for data in datasets.evaluations.values() for e in data.evaluations)
