"""A method's results over several seeds, and paired comparisons of two methods.

    first, other = SeededResults("cmap"), SeededResults("artemis")
    first.add(0, read_results("runs/cmap-0/evaluation.json"))
    ...
    first.numbers()["shoes"]["R@10"].mean               # 44.5, percent
    compare_over_seeds(first, other)["shoes"]["R@10"]   # a `compare.Difference`

See docs/method.md, section 6.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cmap_jax.evaluation.compare import Difference, check_comparable
from cmap_jax.evaluation.outcomes import DRAWS, draw_statistics, intervals
from cmap_jax.evaluation.results_file import StoredResults

_SEED_STREAM = 7  # beside the bootstrap's seed: draws of seeds do not depend on those of queries


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """One number of a method.

    Attributes:
        values: the number by seed.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float | None:
        """Half of the range over the seeds; None for a single seed."""
        values = self.values.values()
        return (max(values) - min(values)) / 2 if len(values) > 1 else None


class SeededResults:
    """A method's results by seed; the bootstrap's draws of each are computed once."""

    def __init__(self, name: str):
        """Begin without results.

        Args:
            name: how messages call the method.
        """
        self.name = name
        self.stored: dict[int, StoredResults] = {}
        self._draws: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def add(self, seed: int, stored: StoredResults) -> None:
        """Add the results of a run."""
        self.stored[seed] = stored

    def numbers(self) -> dict[str, dict[str, OverSeeds]]:
        """Return the numbers by protocol and name, over the seeds that have them."""
        values: dict[str, dict[str, dict[int, float]]] = {}
        for seed, stored in self.stored.items():
            for protocol, result in stored.result.protocols.items():
                for name, value in result.numbers.items():
                    values.setdefault(protocol, {}).setdefault(name, {})[seed] = value
        return {
            protocol: {name: OverSeeds(by_seed) for name, by_seed in by_name.items()}
            for protocol, by_name in values.items()
        }

    def draws(self, protocol: str, seed: int) -> dict[str, np.ndarray]:
        """Return [DRAWS] float64 of every number: its values when annotations are resampled.

        Results on the same queries are resampled alike.
        """
        if (protocol, seed) not in self._draws:
            result = self.stored[seed].result.protocols[protocol]
            (drawn,) = draw_statistics(result.protocol, [result.outcomes])
            self._draws[protocol, seed] = drawn
        return self._draws[protocol, seed]


def compare_over_seeds(
    first: SeededResults, second: SeededResults
) -> dict[str, dict[str, Difference]]:
    """Return the differences of two methods' means, by protocol and number.

    The intervals come from a paired bootstrap over annotations and seeds; see docs/method.md,
    section 6. Seeds that only one of the methods has are left out.

    Raises:
        ValueError: no seed is common to both; or two results cannot be compared, for the reasons
            of `compare.compare`. Names the methods.
    """
    seeds = [seed for seed in first.stored if seed in second.stored]
    if not seeds:
        raise ValueError(f"{first.name} and {second.name} have no seed in common")
    try:
        # Each with the first: the same resampled queries serve all seeds.
        anchor = first.stored[seeds[0]]
        shared = [
            check_comparable(anchor, method.stored[seed])
            for seed in seeds
            for method in (first, second)
        ]
    except ValueError as error:
        raise ValueError(f"{first.name} and {second.name}: {error}") from error
    return {
        protocol: _differences(protocol, first, second, seeds)
        for protocol in shared[0]
        if all(protocol in names for names in shared)
    }


def _differences(
    protocol: str, first: SeededResults, second: SeededResults, seeds: list[int]
) -> dict[str, Difference]:
    ours, theirs = ([m.draws(protocol, s) for s in seeds] for m in (first, second))
    means = [
        [m.stored[s].result.protocols[protocol].numbers for s in seeds] for m in (first, second)
    ]
    pairs = list(zip(ours, theirs, strict=True))
    resampled = {
        name: _resample_seeds(np.stack([b[name] - a[name] for a, b in pairs])) for name in ours[0]
    }
    differences = {}
    for name, interval in intervals(resampled).items():
        if not all(name in n for numbers in means for n in numbers):
            raise ValueError(f"{protocol}: a run lacks {name}; evaluate all runs again")
        one, other = (float(np.mean([n[name] for n in numbers])) for numbers in means)
        differences[name] = Difference(one, other, interval)
    return differences


def _resample_seeds(drawn: np.ndarray) -> np.ndarray:
    """Return the mean over resampled seeds of each draw, [S, DRAWS] -> [DRAWS].

    One seed less than there are is drawn, with replacement. The variance of their mean is then the
    usual estimate of the variance of the mean over the seeds, which drawing all S would understate
    by the factor (S - 1) / S. A single seed is always drawn: its interval is that of the queries.
    """
    count = len(drawn)
    rng = np.random.default_rng((0, _SEED_STREAM))
    chosen = rng.integers(count, size=(max(1, count - 1), DRAWS))
    return drawn[chosen, np.arange(DRAWS)].mean(0)
