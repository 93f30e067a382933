"""From a folder on disk to batches.

    datasets = create_datasets(config)
    for batch in datasets.train.batches(start_step=0, stop_step=1000): ...

A training batch holds, for B items (`batching.TrainingData`):

    reference_image, target_image   uint8 [B, crop, crop, 3], augmented
    text_tokens, text_lengths       int32 [B, T] and [B]
    mask                            bool [B], all true: a partial batch is dropped

An evaluation batch of images (`batching.EvaluationData`) holds ``image`` uint8 [B, crop, crop, 3],
``index`` int32 [B] and ``mask`` bool [B], false for the padding of the last batch.

The names are loaded on first use, since readers and records need no TensorFlow.
"""

import importlib
import os
from typing import Any

# TensorFlow takes memory from a pool of its own. Without it the kernel provides the memory for each
# batch of photographs anew, page by page, and decoding takes three times as long. (Where oneDNN is
# on, it brings a pool as well.)
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

__all__ = ["Datasets", "check_fields", "create_datasets"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name in __all__:
        return getattr(importlib.import_module("input_pipeline.datasets"), name)
    raise AttributeError(f"module 'input_pipeline' has no attribute {name!r}")
