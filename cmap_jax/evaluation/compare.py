"""Two evaluations of the same thing side by side, and a refusal of all others (SPEC 6)."""

import dataclasses
from collections.abc import Mapping

from cmap_jax.evaluation.outcomes import bootstrap_differences
from cmap_jax.evaluation.results import StoredResult
from cmap_jax.protocols import PROTOCOLS

_SHOWN = 5  # image ids in a message


@dataclasses.dataclass(frozen=True)
class Difference:
    """A number of two results.

    Attributes:
        first: the first result's.
        second: the second's.
        interval: 95% of second minus first, from a paired bootstrap over annotations.
    """

    first: float
    second: float
    interval: tuple[float, float]

    def is_significant(self) -> bool:
        """Tell whether the interval leaves zero out."""
        low, high = self.interval
        return low > 0 or high < 0


def compare(
    first: Mapping[str, StoredResult], second: Mapping[str, StoredResult]
) -> dict[str, dict[str, Difference]]:
    """Return the differences of two results, by protocol and number.

    Raises:
        ValueError: they share no protocol; or one that they share was measured on other galleries,
            queries or images, or under another version of its rules. Says which.
    """
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"the results share no protocol: {', '.join(first) or 'none'} against "
            f"{', '.join(second) or 'none'}; numbers of different protocols cannot be compared"
        )
    problems = [p for name in shared if (p := _why_not(name, first[name], second[name]))]
    if problems:
        raise ValueError("these results cannot be compared:\n  " + "\n  ".join(problems))
    return {name: _differences(first[name], second[name]) for name in shared}


def _differences(first: StoredResult, second: StoredResult) -> dict[str, Difference]:
    intervals = bootstrap_differences(first.protocol, first.outcomes, second.outcomes)
    return {
        name: Difference(first.numbers[name], second.numbers[name], interval)
        for name, interval in intervals.items()
    }


def _why_not(name: str, first: StoredResult, second: StoredResult) -> str | None:
    """Return why two results of a protocol cannot be compared, or None."""
    if first.protocol != second.protocol:
        versions = f"{first.protocol.version} and {second.protocol.version}"
        return (
            f"{name}: measured under different rules (versions {versions}); evaluate the older "
            "one again"
        )
    known = PROTOCOLS.get(name)
    if known and first.protocol.version < known.version:
        return (
            f"{name}: both measured under version {first.protocol.version} of its rules, which now "
            f"have version {known.version}; evaluate both again"
        )
    if first.skipped_images != second.skipped_images:
        a, b = set(first.skipped_images), set(second.skipped_images)
        apart = sorted(a ^ b)
        return (
            f"{name}: different images were skipped, {len(a)} against {len(b)}; only one of them "
            f"has left out {', '.join(apart[:_SHOWN])}{' ...' if len(apart) > _SHOWN else ''}"
        )
    for part in ("gallery", "queries"):
        if first.conditions[part] != second.conditions[part]:
            sizes = [
                r.numbers["gallery_images" if part == "gallery" else "queries"]
                for r in (first, second)
            ]
            return (
                f"{name}: different {'galleries' if part == 'gallery' else part} "
                f"({sizes[0]} and {sizes[1]}, digests {first.conditions[part]} and "
                f"{second.conditions[part]})"
            )
    return None
