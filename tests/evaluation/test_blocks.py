"""Queries are scored in blocks of several batches."""

import numpy as np

from cmap_jax.evaluation.evaluator import _batches_at_once, _in_blocks
from cmap_jax.scoring import Branch, ComposedQuery


def _batches(count: int, size: int) -> list[ComposedQuery]:
    values = np.arange(count * size, dtype=np.float32).reshape(count, 1, size, 1)
    names = {"branch_names": ("a", "b"), "levels": ("high",)}
    return [ComposedQuery((Branch(v, -v), Branch(v)), **names) for v in values]


def test_blocks_hold_whole_batches_in_order():
    for at_once, lengths in ((1, [4] * 5), (2, [8, 8, 4]), (25, [20])):
        blocks = list(_in_blocks(iter(_batches(5, 4)), at_once))
        assert [len(block) for block in blocks] == lengths
        joined = np.concatenate([block.branches[0].numerator[0, :, 0] for block in blocks])
        np.testing.assert_array_equal(joined, np.arange(20))
        np.testing.assert_array_equal(
            np.concatenate([block.branches[0].weight[0, :, 0] for block in blocks]), -joined
        )
        assert blocks[0].branches[1].weight is None
    assert not list(_in_blocks(iter([]), 4))


def test_blocks_do_not_part_pairs():
    for batch_size, batches in ((128, 8), (1, 1024), (2000, 1), (3, 340), (1001, 2)):
        assert _batches_at_once(batch_size) == batches
        assert batches * batch_size % 2 == 0
