"""What a run starts from besides random values: another model, a ResNet, word vectors (SPEC 3).

`read_initial_weights` reads and checks what the config names before any data are read,
`fit_initial_weights` what needs the data's words, both before a run writes anything;
`apply_initial_weights` puts it all into a new state.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cmap_jax.config_fields import Kind, differences
from cmap_jax.convert import load_reference_checkpoint, load_resnet, load_word_vectors
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import find_variant
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.trained import load

_logger = logging.getLogger(__name__)

_FREQUENT = 10  # unknown words that are named
_WORD_STREAM = 3  # sets the words' random vectors apart from other draws from the same seed


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Values for a whole model or its backbone, as NumPy arrays.

    Attributes:
        variables: all variables of the model; or None.
        backbone: ``params`` and ``batch_stats`` of the ResNet; or None.
        vocabulary: the words that ``variables`` were trained with, where they are known.
        word_vectors: by word, [word_dim]; None until the words of the data are known.
    """

    variables: Mapping[str, Any] | None = None
    backbone: Mapping[str, Any] | None = None
    vocabulary: Vocabulary | None = None
    word_vectors: Mapping[str, np.ndarray] | None = None


def read_initial_weights(config: ConfigDict) -> InitialWeights:
    """Read what ``config.init_from`` or ``config.model.image.init_from`` names, and check it.

    Raises:
        FileNotFoundError: a file or folder is missing; names it.
        ValueError: one that is damaged, or made for another model; says what differs.
    """
    model, image, text = config.model, config.model.image, config.model.text
    if config.init_from is not None:
        if image.init_from or text.word_vectors:
            raise ValueError(
                "config.init_from brings a whole model: leave config.model.image.init_from and "
                "config.model.text.word_vectors unset"
            )
        return _read_model(config)
    if text.word_vectors and not epath.Path(text.word_vectors).is_file():
        raise FileNotFoundError(
            f"config.model.text.word_vectors: {text.word_vectors}: no such file"
        )
    if image.init_from:
        return InitialWeights(
            backbone=load_resnet(image.init_from, depth=image.depth, width=image.width)
        )
    if image.frozen:
        _logger.warning(
            "NO PRETRAINED WEIGHTS: config.model.image.frozen is set and neither "
            "config.model.image.init_from nor config.init_from, so the image encoder stays at its "
            "RANDOM initial values. Give a torchvision ResNet-%d: "
            "--config.model.image.init_from=resnet%d.pth",
            image.depth,
            image.depth,
        )
    elif image.width == 64:
        _logger.warning(
            "NO PRETRAINED WEIGHTS: this ResNet-%d trains from scratch, far below published "
            "results. Give torchvision's: --config.model.image.init_from=resnet%d.pth",
            image.depth,
            image.depth,
        )
    if text.frozen and not text.word_vectors and find_variant(model.variant).reads_text:
        _logger.warning(
            "NO WORD VECTORS: config.model.text.frozen is set and config.model.text.word_vectors "
            "is not, so the word embedding stays at its RANDOM initial values. Give GloVe's: "
            "--config.model.text.word_vectors=glove.840B.300d.zip"
        )
    return InitialWeights()


def fit_initial_weights(
    config: ConfigDict, initial: InitialWeights | None, model: CMAP, datasets: Any
) -> InitialWeights:
    """Return the initial weights with the word vectors, once the words are known.

    Args:
        config: the whole config.
        initial: what `read_initial_weights` returned; None: it is read here.
        model: the model that they are for.
        datasets: what `input_pipeline.create_datasets` returned: ``vocabulary``, and
            ``word_counts`` in the training captions.

    Raises:
        ValueError: the weights were trained with other words, or have another shape; word vectors
            that cannot be read; says why.
    """
    initial = initial or read_initial_weights(config)
    vocabulary, counts = datasets.vocabulary, datasets.word_counts
    if initial.vocabulary is not None and initial.vocabulary.words != vocabulary.words:
        raise ValueError(
            f"{config.init_from} was trained with other words than the data sets' vocabulary has; "
            "pass its vocabulary to create_datasets"
        )
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), **CMAP.example_inputs(config.data.crop))
    )
    if initial.variables is not None:
        _check_shapes(shapes, initial.variables, config.init_from)
        _report_unknown_words(config.init_from, vocabulary, counts)
    elif config.model.text.word_vectors and "text_encoder" in shapes["params"]:
        vectors = load_word_vectors(
            config.model.text.word_vectors, vocabulary, config.model.text.word_dim, counts
        )
        return dataclasses.replace(initial, word_vectors=vectors)
    return initial


def apply_initial_weights(
    config: ConfigDict,
    initial: InitialWeights,
    variables: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Return a new model's variables with the initial weights in their places.

    Args:
        config: the whole config.
        initial: what `fit_initial_weights` returned.
        variables: the model's random variables.
        vocabulary: the words.
    """
    variables = dict(variables)
    if initial.variables is not None:
        return _placed_like(initial.variables, variables)
    if initial.backbone is not None:
        for collection, values in initial.backbone.items():
            variables[collection] = _replaced(
                variables[collection], ("image_encoder", "backbone"), values
            )
    if initial.word_vectors is not None:
        table = variables["params"]["text_encoder"]["word_embedding"]
        # Words without a vector: N(0, 1) (SPEC 1).
        rows = np.random.default_rng([config.seed, _WORD_STREAM]).normal(size=table.shape)
        for i, word in enumerate(vocabulary.words):
            if word in initial.word_vectors:
                rows[i] = initial.word_vectors[word]
        variables["params"] = _replaced(
            variables["params"], ("text_encoder", "word_embedding"), rows
        )
    return variables


def _report_unknown_words(source: str, vocabulary: Vocabulary, counts: Mapping[str, int]) -> None:
    """Warn of the words of the training captions that a model to start from does not know."""
    unknown = {word: n for word, n in counts.items() if word not in vocabulary}
    if unknown:
        frequent = sorted(unknown, key=lambda word: -unknown[word])[:_FREQUENT]
        _logger.warning(
            "%s does not know %.2g%% of the words of the training captions, and reads each as "
            "<unk>; most often %s",
            source,
            100 * sum(unknown.values()) / sum(counts.values()),
            ", ".join(f"{word} ({unknown[word]:,})" for word in frequent),
        )


def _read_model(config: ConfigDict) -> InitialWeights:
    """Read a whole model from a workdir or from one of the authors' checkpoints."""
    source = config.init_from
    if not source:
        raise ValueError(
            "config.init_from is empty: this stage starts from an earlier one; give its workdir or "
            "one of the authors' checkpoints, --config.init_from=runs/fashioniq"
        )
    if not epath.Path(source).exists():
        raise FileNotFoundError(f"config.init_from: {source}: no such workdir or file")
    if epath.Path(source).is_dir():
        trained = load(source)
        loaded, variables, vocabulary = trained.config.model, trained.variables, trained.vocabulary
    else:
        loaded, variables, vocabulary = load_reference_checkpoint(source)
    old, new = loaded.to_dict(), config.model.to_dict()
    different = differences(old, new, Kind.MODEL, part="model")
    if different:
        raise ValueError(
            f"config.init_from: {source} holds another model:\n  "
            + "\n  ".join(different)
            + "\nSet these fields to what they are there, or start without it"
        )
    return InitialWeights(variables=variables, vocabulary=vocabulary)


def _check_shapes(expected: Any, found: Any, source: str) -> None:
    """Refuse a model that differs in a size the configs do not show, such as the vocabulary's."""
    named = [
        {jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (dict(expected), dict(found)))
    ]
    if named[0] != named[1]:
        lines = [
            f"{name}: {named[1].get(name)} there, {named[0].get(name)} now"
            for name in dict.fromkeys([*named[0], *named[1]])
            if named[0].get(name) != named[1].get(name)
        ]
        raise ValueError(f"config.init_from: {source} does not fit:\n  " + "\n  ".join(lines[:8]))


def _placed_like(values: Any, like: Any) -> Any:
    """Return ``values`` with the dtypes and placements of ``like``."""
    return jax.tree.map(
        lambda value, old: jax.device_put(np.asarray(value, old.dtype), old.sharding), values, like
    )


def _replaced(tree: Any, path: tuple[str, ...], values: Any) -> Any:
    """Return a nested dict with the part at ``path`` replaced by values of the same shapes."""
    if not path:
        return _placed_like(values, tree)
    head, *rest = path
    return {**tree, head: _replaced(tree[head], tuple(rest), values)}
