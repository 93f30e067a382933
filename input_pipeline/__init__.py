"""From a folder on disk to batches.

    datasets = create_datasets(config)
    for batch in datasets.train.batches(start_step=0, stop_step=1000): ...

A training batch holds, for B items (`batching.TrainingData`):

    reference_image, target_image   uint8 [B, crop, crop, 3], augmented
    text_tokens, text_lengths       int32 [B, T] and [B]
    mask                            bool [B], all true: a partial batch is dropped

An evaluation batch of images (`batching.EvaluationData`) holds ``image`` uint8 [B, crop, crop, 3],
``index`` int32 [B] and ``mask`` bool [B], false for the padding of the last batch.

With ``config.data.features`` an image is a dict by level in place of pixels, of features [B, C] or
[B, h, w, C] (`features.loading`).

The names are loaded on first use, since readers and records need no TensorFlow.
"""

import os

from etils import epy

# TensorFlow takes memory from a pool of its own. Without it the kernel provides the memory for each
# batch of photographs anew, page by page, and decoding takes three times as long. (Where oneDNN is
# on, it brings a pool as well.)
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

with epy.lazy_api_imports(globals()):
    from input_pipeline.datasets import Datasets, check_fields, create_datasets

__all__ = ["Datasets", "check_fields", "create_datasets"]
