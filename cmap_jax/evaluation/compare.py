"""Comparison of two evaluations under equal conditions; all others are refused.

See docs/method.md, section 6.
"""

import dataclasses

from cmap_jax.evaluation.outcomes import bootstrap_differences
from cmap_jax.evaluation.results import ProtocolResult
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.protocols import PROTOCOLS

_SHOWN = 5  # image ids in a message


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number of two results.

    Attributes:
        first: the number in the first result.
        second: the number in the second result.
        interval: 95% interval of second minus first, by a paired bootstrap over annotations.
    """

    first: float
    second: float
    interval: tuple[float, float]

    def is_significant(self) -> bool:
        """Tell whether the interval excludes zero."""
        low, high = self.interval
        return low > 0 or high < 0


def compare(first: StoredResults, second: StoredResults) -> dict[str, dict[str, Difference]]:
    """Return the differences of two results, by protocol and number.

    Raises:
        ValueError: as `check_comparable`.
    """
    ours, theirs = first.result.protocols, second.result.protocols
    shared = check_comparable(first, second)
    return {name: _differences(ours[name], theirs[name]) for name in shared}


def check_comparable(first: StoredResults, second: StoredResults) -> list[str]:
    """Return the protocols that two results share, under equal conditions.

    Raises:
        ValueError: they share no protocol; or one that they share was measured on other galleries,
            queries or images, or under another version of its rules. Says which.
    """
    ours, theirs = first.result.protocols, second.result.protocols
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(
            f"the results share no protocol: {', '.join(ours) or 'none'} against "
            f"{', '.join(theirs) or 'none'}; numbers of different protocols cannot be compared"
        )
    problems = [p for name in shared if (p := _why_not(name, first, second))]
    if problems:
        raise ValueError("these results cannot be compared:\n  " + "\n  ".join(problems))
    return shared


def _differences(first: ProtocolResult, second: ProtocolResult) -> dict[str, Difference]:
    intervals = bootstrap_differences(first.protocol, first.outcomes, second.outcomes)
    lacking = [n for n in intervals if n not in first.numbers or n not in second.numbers]
    if lacking:
        raise ValueError(
            f"{first.protocol.name}: one of them lacks {', '.join(lacking)}; evaluate both again"
        )
    return {
        name: Difference(first.numbers[name], second.numbers[name], interval)
        for name, interval in intervals.items()
    }


def _why_not(name: str, first: StoredResults, second: StoredResults) -> str | None:
    """Return why the results under a protocol cannot be compared, or None."""
    one, other = (stored.result.protocols[name] for stored in (first, second))
    if one.protocol != other.protocol:
        versions = f"{one.protocol.version} and {other.protocol.version}"
        return (
            f"{name}: measured under different rules (versions {versions}); evaluate the older "
            "one again"
        )
    known = PROTOCOLS.get(name)
    if known and one.protocol.version < known.version:
        return (
            f"{name}: both measured under version {one.protocol.version} of its rules, which now "
            f"have version {known.version}; evaluate both again"
        )
    a, b = (set(stored.facts.data_set.skipped_images) for stored in (first, second))
    if a != b:
        apart = sorted(a ^ b)
        return (
            f"{name}: different images were skipped, {len(a)} against {len(b)}; only one of them "
            f"has left out {', '.join(apart[:_SHOWN])}{' ...' if len(apart) > _SHOWN else ''}"
        )
    for part in ("gallery", "queries"):
        if one.conditions[part] != other.conditions[part]:
            sizes = [
                r.numbers["gallery_images" if part == "gallery" else "queries"]
                for r in (one, other)
            ]
            return (
                f"{name}: different {'galleries' if part == 'gallery' else part} "
                f"({sizes[0]} and {sizes[1]}, digests {one.conditions[part]} and "
                f"{other.conditions[part]})"
            )
    return None
