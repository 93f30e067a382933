"""Tables of the results of `preservation.py`, in Markdown."""

import collections
from collections.abc import Callable, Sequence

import harness
import numpy as np

RECALLS = ("R@1", "R@10", "R@50")
_BASE = "none"  # the setting that all are compared with, seed by seed
Runs = dict[str, dict[int, dict]]  # by setting and seed


def tables(runs: list[dict]) -> str:
    """Return three tables for each data set: recalls, measures at the end, and over training."""
    by_data: dict[str, Runs] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for run in runs:
        by_data[run["data"]][run["setting"]][run["seed"]] = run
    parts = []
    for name, settings in by_data.items():
        for title, table in (
            ("recalls", recalls),
            ("at the end of training", measures),
            ("over training", course),
        ):
            parts.append(f"### {name}: {title}\n\n{table(settings)}")
    return "\n\n".join(parts)


def recalls(settings: Runs) -> str:
    """Return recalls in percent, and R@1 less that without the loss, paired by seed."""
    rows = []
    for title, runs in settings.items():
        cells = [_mean([recall(run, name) for run in runs.values()], digits=1) for name in RECALLS]
        both = sorted(runs.keys() & settings.get(_BASE, {}).keys())
        gains = [recall(runs[seed], "R@1") - recall(settings[_BASE][seed], "R@1") for seed in both]
        gain = f"{np.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})" if gains else ""
        rows.append([title, f"{len(runs)}", *cells, gain])
    return harness.table(["setting", "seeds", *RECALLS, f"R@1 less that of `{_BASE}`"], rows)


def recall(run: dict, name: str) -> float:
    """Return a run's recall under the first protocol, in percent."""
    return next(iter(run["recalls"].values()))[name]


_MEASURES: dict[str, tuple[Callable[[dict], float], int]] = {
    "spread, modified": (lambda run: _last(run, "modified/spread"), 3),
    "spread, preserved": (lambda run: _last(run, "preserved/spread"), 3),
    "entropy, preserved": (lambda run: _last(run, "preserved/entropy"), 2),
    "participation, preserved": (lambda run: _last(run, "preserved/participation"), 1),
    "top dimension shared": (lambda run: _last(run, "preserved/top_shared"), 2),
    "cosine to the text, modified": (lambda run: _last(run, "modified/text_cosine"), 2),
    "cosine to the text, preserved": (lambda run: _last(run, "preserved/text_cosine"), 2),
    "cosine between texts": (lambda run: _last(run, "text_similarity"), 2),
    "attentions' overlap": (lambda run: run["overlap"]["attention_overlap"], 2),
    "heat maps' IoU": (lambda run: run["overlap"]["target_iou"], 2),
    "heat maps' correlation": (lambda run: run["overlap"]["target_correlation"], 2),
}


def measures(settings: Runs) -> str:
    """Return what the trained models do, means over seeds and levels."""
    rows = [
        [title, *(_mean([get(r) for r in runs.values()], digits) for get, digits in _columns())]
        for title, runs in settings.items()
    ]
    return harness.table(["setting", *_MEASURES], rows)


def _columns() -> list[tuple[Callable[[dict], float], int]]:
    return list(_MEASURES.values())


_COURSE = {
    "matching loss": ("matching", 2),
    "preservation loss": ("preservation", 3),
    "its gradient to that of matching": ("gradient_ratio", 3),
    "entropy, preserved": ("preserved/entropy", 2),
    "participation, preserved": ("preserved/participation", 1),
    "spread, preserved": ("preserved/spread", 3),
}
_OF_PARTS = ("spread", "entropy", "participation", "top_shared", "text_cosine")
_PARTS = (0.0, 0.1, 0.2, 0.5, 1.0)


def course(settings: Runs) -> str:
    """Return how numbers change over training: means over seeds and levels at parts of the run."""
    rows = []
    for title, runs in settings.items():
        cells = []
        for name, digits in _COURSE.values():
            values = [
                np.mean([at_part(run, name, part) for run in runs.values()]) for part in _PARTS
            ]
            cells.append(", ".join(f"{value:.{digits}f}" for value in values))
        rows.append([title, *cells])
    return harness.table(["setting", *_COURSE], rows)


def at_part(run: dict, name: str, part: float) -> float:
    """Return a number at a part of a run, 0 to 1; see `number_of`."""
    first, last = (run["curve"][i]["step"] for i in (0, -1))
    wanted = first + part * (last - first)
    return number_of(min(run["curve"], key=lambda point: abs(point["step"] - wanted)), name)


def number_of(point: dict, name: str) -> float:
    """Return a number at a point of a curve: the mean over levels.

    "gradient_ratio" is the norm of the preservation loss's gradient over that of matching.
    """
    if name == "gradient_ratio":
        return point["gradient_preservation"] / max(point["gradient_matching"], 1e-12)
    return float(np.mean(point[name]))


def thinned(run: dict) -> dict:
    """Return a run with as much of its curve as the tables show, rounded."""
    names = {name for name, _ in _COURSE.values()} - {"gradient_ratio"}
    names |= {"step", "text_similarity", "gradient_matching", "gradient_preservation"}
    names |= {f"{part}/{name}" for part in ("modified", "preserved") for name in _OF_PARTS}
    steps = {at_part(run, "step", part) for part in _PARTS}
    curve = [
        {name: np.round(point[name], 5).tolist() for name in sorted(names)}
        for point in run["curve"]
        if point["step"] in steps
    ]
    protocol, numbers = next(iter(run["recalls"].items()))
    return run | {
        "recalls": {protocol: {name: numbers[name] for name in RECALLS}},
        "overlap": {name: round(x, 5) for name, x in run["overlap"].items() if "/" not in name},
        "curve": curve,
    }


def _last(run: dict, name: str) -> float:
    return at_part(run, name, 1.0)


def _mean(values: Sequence[float], digits: int) -> str:
    """Return the mean ± half of the range."""
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"
