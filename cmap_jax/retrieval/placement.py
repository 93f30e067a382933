"""The rank of a correct image among the others; ties count in nobody's favour.

Images of exactly equal score have no order of their own, and a sort would give them one by chance.
Their rank is therefore its expectation over all orders: with g wrong images strictly above the
correct one, e wrong images at exactly its score and c correct images at that score, itself
included, the first of these c has on average g + e / (c + 1) wrong images before it (the
"realistic" rank of the literature on link prediction). A model that scores all images alike then
ranks the correct one in the middle of the gallery, and not first.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cmap_jax.retrieval.positions import NO_TARGET

# Message of every function that meets a NaN score.
BROKEN = "a score is NaN: the model or its inputs are broken"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Counts that rank one correct image of each query, or several; int64 arrays of one shape.

    Attributes:
        higher: wrong images that score strictly higher.
        tied: wrong images at exactly the same score.
        correct: correct images at that score, the image itself included; 0 where there is no
            correct image.
    """

    higher: np.ndarray
    tied: np.ndarray
    correct: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["Placement"]) -> "Placement":
        """Return the placements of the queries of all parts, [B] each, in their order."""
        names = [field.name for field in dataclasses.fields(cls)]
        empty = np.empty(0, np.int64)
        return cls(*(np.concatenate([empty, *(getattr(p, n) for p in parts)]) for n in names))

    def ranks(self) -> np.ndarray:
        """Return the expected 0-based ranks, float64; -1 where there is no correct image."""
        expected = self.higher + self.tied / (self.correct + 1)
        return np.where(self.correct > 0, expected, float(NO_TARGET))

    def best(self) -> "Placement":
        """Return the placement of each query's best-ranked image, [B, M] -> [B]."""
        # The best score has the fewest images above it, and of those the smallest tie: where no
        # wrong image lies between two scores, the lower one may be tied and the upper one not.
        order = np.lexsort((self.tied, self.higher, self.correct == 0), axis=1)[:, 0]
        rows = np.arange(len(order))
        return Placement(*(x[rows, order] for x in (self.higher, self.tied, self.correct)))


def place_among(scores: np.ndarray, correct: np.ndarray, wrong: np.ndarray) -> Placement:
    """Return the placement of each row's best correct image among those that take part.

    Args:
        scores: [B, N] float32, higher is better.
        correct: mask of the correct images, [B, N] bool.
        wrong: mask of the wrong images, [B, N] bool; the remaining ones do not take part.

    Returns:
        Counts of shape [B].

    Raises:
        ValueError: the score of an image that takes part is NaN.
    """
    if np.isnan(scores[correct | wrong]).any():
        raise ValueError(BROKEN)
    best = np.max(scores, axis=1, keepdims=True, where=correct, initial=-np.inf)
    return Placement(
        (wrong & (scores > best)).sum(axis=1),
        (wrong & (scores == best)).sum(axis=1),
        (correct & (scores == best)).sum(axis=1),
    )


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The scores that a pass over the gallery counts against, and counts known before it.

    Attributes:
        scores: score of the best correct image, [B, 1], or of each correct one, [B, M]; float,
            -inf for none.
        correct: correct images at each of these scores, [B, 1] or [B, M] int64.
        excluded: number of wrong images whose score counts as -inf, [B, 1] int64.
    """

    scores: np.ndarray
    correct: np.ndarray
    excluded: np.ndarray

    @classmethod
    def build(
        cls, scores: np.ndarray, correct: np.ndarray, excluded: np.ndarray, *, every: bool
    ) -> "Thresholds":
        """Build from the correct images' scores.

        Args:
            scores: scores of the correct images, [B, M]; -inf for an excluded one and padding.
            correct: their positions, [B, M], each once, padded with -1.
            excluded: positions that come last, [B, E], each once, padded with -1.
            every: whether all correct images are placed, or the best one of each query.
        """
        exists = correct >= 0
        is_correct = (excluded[:, :, None] == correct[:, None, :]).any(axis=2)
        thresholds = scores if every else scores.max(axis=1, keepdims=True)
        equal = exists[:, None, :] & (thresholds[:, :, None] == scores[:, None, :])
        counts = equal.sum(axis=2)
        if every:
            counts = np.where(exists, counts, 0)
        wrong = ((excluded >= 0) & ~is_correct).sum(axis=1, keepdims=True)
        return cls(thresholds, counts, wrong)

    def place(self, higher: np.ndarray, tied: np.ndarray) -> Placement:
        """Return the placements of all correct images, [B, M], or of the best ones, [B, 1].

        Args:
            higher: number of wrong, not excluded images above each threshold.
            tied: number of wrong, not excluded images at each threshold.
        """
        has_excluded_level = self.scores == -np.inf
        tied = tied.astype(np.int64) + np.where(has_excluded_level, self.excluded, 0)
        return Placement(higher.astype(np.int64), tied, self.correct)
