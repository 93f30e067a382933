"""A picture of the curves of `preservation.py`: how numbers change over training."""

import io
from collections.abc import Sequence

import numpy as np
from preservation_table import number_of

_PANELS = {
    "preservation loss": "preservation",
    "its gradient to that of matching": "gradient_ratio",
    "spread of the preserved score": "preserved/spread",
    "participation, of all dimensions": "preserved/participation",
    "entropy of the preservation attention, nats": "preserved/entropy",
    "cosine of the preserved part to the text": "preserved/text_cosine",
}
# Okabe and Ito's palette without its yellow, and styles that tell the lines apart without colors.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def draw(runs: list[dict], data: str, settings: Sequence[str]) -> bytes:
    """Draw a panel a number and a line a setting, with the range of the seeds; return a PNG.

    Args:
        runs: the results.
        data: name of the data set.
        settings: the settings to draw, six at most.

    Raises:
        ValueError: a setting has no run on the data.
    """
    from matplotlib.figure import Figure

    figure = Figure((10, 7.5), layout="constrained")
    grid = figure.subplots(3, 2).ravel()
    for number, title in enumerate(settings):
        chosen = [run for run in runs if (run["data"], run["setting"]) == (data, title)]
        if not chosen:
            raise ValueError(f"{data}: no run with the setting {title!r}")
        for axes, name in zip(grid, _PANELS.values(), strict=True):
            lines = np.array([[number_of(point, name) for point in run["curve"]] for run in chosen])
            steps = np.array([point["step"] for point in chosen[0]["curve"]])
            done = 100 * steps / steps[-1]
            color = _COLORS[number % len(_COLORS)]
            style = _STYLES[number % len(_STYLES)]
            axes.plot(done, lines.mean(0), color=color, linestyle=style, label=title)
            axes.fill_between(
                done, lines.min(0), lines.max(0), color=color, alpha=0.15, linewidth=0
            )
    for axes, title in zip(grid, _PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(color="#d8d8d8")
    grid[0].legend(fontsize=8, frameon=False)
    figure.supxlabel("percent of the run; the area is the range of the seeds", fontsize=9)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=90, metadata={"Software": None})
    return encoded.getvalue()
