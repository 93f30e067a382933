"""The model card of an exported model: README.md with the YAML header that hubs read.

The header is made by `huggingface_hub`, which knows its form. The numbers in it carry their
protocol: the name of a data set alone does not say what a recall means.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import jax
from huggingface_hub import EvalResult, ModelCardData

import cmap_jax
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.exporting import programs as programs_lib
from cmap_jax.exporting.folder import PROGRAMS, SUFFIX, without_paths
from cmap_jax.facts import DataFacts
from cmap_jax.models.composers import find_variant
from cmap_jax.trained import Trained
from cmap_jax.workdir.description import (
    CONVERTED_FROM,
    TENSORS,
    ZERO_SHOT,
    read_description,
    unfinished,
)

_TASK = "composed-image-retrieval"
_TAGS = (_TASK, "image-retrieval", "image-text-retrieval", "jax", "flax", "stablehlo")


def model_card(
    trained: Trained,
    *,
    name: str,
    license_id: str | None,
    results: Mapping[str, StoredResults],
    tables: Sequence[str],
    programs: Sequence[str],
) -> str:
    """Return the text of a model card.

    Args:
        trained: a model that was loaded from a workdir.
        name: the title.
        license_id: an identifier of the hub, such as "apache-2.0"; None: the card states none.
        results: results of the model by file name.
        tables: the same results as text, one a file.
        programs: names of the exported programs; empty without any.
    """
    data = ModelCardData(
        license=license_id,
        library_name="cmap_jax",
        pipeline_tag="image-feature-extraction",
        tags=list(_TAGS),
        model_name=name,
        eval_results=[r for stored in results.values() for r in _eval_results(stored)] or None,
    )
    sections = (
        f"# {name}\n\n{_summary(trained)}",
        _use(trained),
        _use_programs(trained, programs) if programs else "",
        _results(dict(zip(results, tables, strict=True))),
        _origin(trained),
        _limits(trained, license_id),
    )
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def _eval_results(stored: StoredResults) -> Iterator[EvalResult]:
    """Yield the numbers of a file of results, protocol by protocol, as a hub lists them."""
    data_set = stored.facts.data.name
    for name, result in stored.result.protocols.items():
        protocol = result.protocol
        for metric in dict.fromkeys((protocol.headline_name, *protocol.metrics)):
            if metric in result.numbers:
                yield EvalResult(
                    task_type=_TASK,
                    task_name="Composed image retrieval",
                    dataset_type=data_set or name.partition("/")[0],
                    dataset_name=name,
                    dataset_config=name,
                    metric_type=re.sub(r"\W+", "_", metric.replace("@", "_at_")).strip("_").lower(),
                    metric_name=f"{metric} (%, {name})",
                    metric_value=round(float(result.numbers[metric]), 2),
                )


def _summary(trained: Trained) -> str:
    """Return a sentence and a table about the model."""
    model, sizes = trained.config.model, jax.tree.leaves(trained.variables["params"])
    reads_text = find_variant(model.variant).reads_text
    rows = {
        "method": f"`{model.variant}`",
        "levels": ", ".join(trained.model.levels),
        "embedding": f"{model.embed_dim} numbers a level",
        "image encoder": f"`{model.image.name}`",
        "text encoder": f"`{model.text.name}`" if reads_text else "none",
        "images": f"{trained.preprocessing.crop} x {trained.preprocessing.crop} pixels, "
        f"read as {trained.preprocessing.read_as}",
        "parameters": f"{sum(x.size for x in sizes):,}",
        "training steps": f"{trained.step:,}",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return (
        "A model for composed image retrieval: a reference image and a text that says what should "
        f"be different find an image. Made with cmap_jax {cmap_jax.__version__}.\n\n"
        + "\n".join(["| | |", "|---|---|", *lines])
    )


def _use(trained: Trained) -> str:
    """Return how the folder is used with this library."""
    takes = trained.takes
    images = '["reference.jpg"]' if takes.both or takes.image else "None"
    texts = '["is longer and red"]' if takes.both or not takes.image else "None"
    return f"""## Use

`cmap evaluate`, `cmap index` and `--config.init_from` take this folder as they take a workdir.

```python
import cmap_jax

trained = cmap_jax.load(".")  # the path of this folder
gallery = trained.encode_images(["a.jpg", "b.jpg"])
query = trained.compose({images}, {texts})
scores = cmap_jax.scoring.score(query, gallery)
```"""


def _use_programs(trained: Trained, programs: Sequence[str]) -> str:
    """Return a program that uses the StableHLO in this folder, and no part of this library."""
    side = trained.preprocessing.crop
    references = programs_lib.ENCODE_IMAGES
    if programs_lib.ENCODE_REFERENCES in programs:
        references = programs_lib.ENCODE_REFERENCES
    compose = next(name for name in programs if name.startswith(programs_lib.COMPOSE))
    halves = {
        programs_lib.COMPOSE: "references, text",
        programs_lib.COMPOSE_IMAGE: "references",
        programs_lib.COMPOSE_TEXT: "text",
    }[compose]
    lines = [
        f"pixels = np.zeros((3, {side}, {side}, 3), np.uint8)  # RGB, resized and cropped",
        f'gallery = program("{programs_lib.ENCODE_IMAGES}")(weights, pixels)',
    ]
    if "references" in halves:
        lines.append(f'references = program("{references}")(weights, pixels[:1])')
    if "text" in halves and programs_lib.ENCODE_TEXT in programs:
        lines += [
            "tokens, lengths = np.array([[1, 2, 3]], np.int32), np.array([3], np.int32)",
            f'text = program("{programs_lib.ENCODE_TEXT}")(weights, tokens, lengths)',
        ]
    lines += [
        f'query = program("{compose}")(weights, {halves})',
        f'scores = program("{programs_lib.SCORE}")(query, gallery)  # [1, 3], higher is better',
    ]
    code = "\n".join(lines)
    return f"""## Use without the library

`{PROGRAMS}/` holds {", ".join(f"`{name}`" for name in programs)} as StableHLO, written by JAX
{jax.__version__} for {", ".join(programs_lib.PLATFORMS)} and any number of images, texts and
queries. `model.json` says how images become pixels; the tokenizer's files turn a text into ids, as
`cmap_jax.load(".").tokenize(texts)` does.

```python
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def program(name):
    with open(f"{PROGRAMS}/{{name}}{SUFFIX}", "rb") as file:
        return jax.jit(export.deserialize(file.read()).call)


weights = load_file("{TENSORS}")
{code}
```"""


def _results(tables: Mapping[str, str]) -> str:
    """Return the tables of results by file name, or that there are none."""
    if not tables:
        return "## Results\n\nNone are stated: these weights have not been evaluated."
    blocks = "\n\n".join(f"`{name}`:\n\n```\n{table}\n```" for name, table in tables.items())
    return (
        "## Results\n\nNumbers in percent, with 95% intervals by resampling annotations. A number "
        "may be compared with another of the same protocol alone; the files have the rules and the "
        f"rank of each query.\n\n{blocks}"
    )


def _origin(trained: Trained) -> str:
    """Return the data and the run behind the weights."""
    facts = dict(read_description(trained.workdir).facts)
    data = DataFacts.from_dict(facts)
    lines = []
    if CONVERTED_FROM in facts:
        lines.append(f"Converted from `{facts[CONVERTED_FROM]}`.")
    if facts.get(ZERO_SHOT):
        lines.append("Trained on no data set's triplets: its numbers are zero-shot.")
    else:
        items = f", {data.training_items:,} triplets an epoch" if data.training_items else ""
        seed = "" if CONVERTED_FROM in facts else f", seed {trained.config.seed}"
        lines.append(f"Trained on the data set `{trained.config.data.name}`{items}{seed}.")
    if started := [value for value in _weights(trained) if value]:
        names = ", ".join(f"`{value}`" for value in dict.fromkeys(started))
        lines.append(f"Started from the weights {names}.")
    if data.images_skipped:
        lines.append(f"{data.images_skipped:,} unusable images were left out.")
    if progress := unfinished(trained.workdir):
        lines.append(f"The run had seen {progress[0]:,} of {progress[1]:,} steps.")
    lines.append("`config.json` has every setting, `model.json` the versions of the packages.")
    return "## Training\n\n" + " ".join(lines)


def _weights(trained: Trained) -> list[str | None]:
    """Return the weights that the training started from, without folders of a machine."""
    config = without_paths(read_description(trained.workdir)).config
    model = config.model
    return [config.init_from, model.pretrained, model.image.init_from, model.text.init_from]


def _limits(trained: Trained, license_id: str | None) -> str:
    """Return what a user must know that no number says."""
    lines = [
        "Scores rank the images of one gallery; they are no probabilities, and scores of two "
        "queries cannot be compared.",
        "On pictures or texts unlike those of the training, results may be far worse.",
    ]
    if find_variant(trained.config.model.variant).reads_text:
        lines.append("Words that the tokenizer does not know change nothing or little in a query.")
    if license_id is None:
        lines.append(
            "No licence is stated. The terms of the data set and of pretrained weights apply to "
            "what was made of them."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
