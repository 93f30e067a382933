"""Composed image retrieval in JAX: a reference image and a text find the image they describe.

The public names are loaded on first use, which keeps importing the package light:

    from cmap_jax import CMAP, load

    trained = load("runs/garments")          # reads a workdir, and nothing else
    text = trained.encode_text(["is red and longer"])
    pyramid = trained.encode_images(["dress.jpg"])
"""

from etils import epy

__version__ = "0.1.0"

with epy.lazy_api_imports(globals()):
    from cmap_jax import (
        config_fields,
        convert,
        encoding,
        evaluation,
        exporting,
        facts,
        files,
        losses,
        models,
        numerics,
        processing,
        progress,
        protocols,
        remedies,
        reporting,
        retrieval,
        scoring,
        serving,
        sharding,
        sweeps,
        temporaries,
        trained,
        training,
        visualization,
        workdir,
    )
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.retrieval.retriever import Retriever
    from cmap_jax.trained import load

__all__ = [
    "CMAP",
    "Retriever",
    "__version__",
    "config_fields",
    "convert",
    "encoding",
    "evaluation",
    "exporting",
    "facts",
    "files",
    "load",
    "losses",
    "models",
    "numerics",
    "processing",
    "progress",
    "protocols",
    "remedies",
    "reporting",
    "retrieval",
    "scoring",
    "serving",
    "sharding",
    "sweeps",
    "temporaries",
    "trained",
    "training",
    "visualization",
    "workdir",
]
