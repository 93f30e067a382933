"""An index on disk: the embeddings of a gallery's images, their ids and their metadata."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.retrieval.index_files import (
        form,
        item_files,
        quantization,
        reading,
        tensors,
        writing,
    )

__all__ = ["form", "item_files", "quantization", "reading", "tensors", "writing"]
