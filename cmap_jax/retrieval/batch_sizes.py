"""The few sizes of batches that programs are compiled for.

sizes = BatchSizes((1, 8, 32))
list(sizes.parts(43))           # [(slice(0, 32), 32), (slice(32, 43), 32)]
"""

from collections.abc import Iterable, Iterator


class BatchSizes:
    """Sizes that any number of rows is cut and padded to."""

    def __init__(self, sizes: Iterable[int]):
        """Take the sizes, 1 or more each."""
        self._sizes = sorted(set(sizes))

    def __iter__(self) -> Iterator[int]:
        """Yield the sizes, ascending."""
        return iter(self._sizes)

    def parts(self, count: int) -> Iterator[tuple[slice, int]]:
        """Yield the rows of each batch and the size that it is padded to.

        Every batch but the last has the largest size, and the last one the least that holds it.
        """
        largest = self._sizes[-1]
        for start in range(0, count, largest):
            rows = min(largest, count - start)
            yield slice(start, start + rows), next(s for s in self._sizes if s >= rows)
