"""Training curves of several runs as small figures, one for each quantity of metrics.jsonl."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wespeaker.figures import LineStyle, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
MAX_POINTS = 300  # of a line; as many pixels as a figure is wide


class Panel(NamedTuple):
    """One figure: a quantity by the epoch."""

    title: str
    key: str  # in metrics.jsonl
    factor: float = 1.0
    log: bool = False
    upper_key: str = ""  # drawn thin: the largest value, where ``key`` is a mean


PANELS = (
    Panel("Loss", "loss"),
    Panel("Accuracy without margin, %", "accuracy", 100),
    Panel("EER of the dev trials, %", "dev_eer", 100),
    Panel("Margin", "margin"),
    Panel("Learning rate", "learning_rate", log=True),
    Panel("Support, in classes: mean, and thin the largest", "support", log=True, upper_key="support_max"),
    Panel("Samples whose own class has posterior 0, %", "zero_target", 100),
    Panel("Time spent waiting for data, %", "data_wait", 100),
)


def panel_figure(panel: Panel, rows_of: Mapping[str, Rows], styles: Mapping[str, LineStyle]) -> Figure | None:
    """Draw a panel, one line for each run that has its quantity; None if no run has.

    Lines of more than `MAX_POINTS` rows are thinned: a point is then the mean of neighbouring rows (of the thin
    lines the largest).

    Args:
        panel: what to draw.
        rows_of: the rows of metrics.jsonl, by the name of the run.
        styles: how the lines look, by the name of the run.
    """
    figure = new_figure(3.2, 2.0)
    axes = figure.add_axes((0.15, 0.2, 0.82, 0.74))  # the same in each panel: they stand in rows and columns
    lines = []
    for name, rows in rows_of.items():
        colour, dashes = styles[name]
        for key, merge, width in ((panel.key, np.mean, 1.5), (panel.upper_key, np.max, 0.7)):
            epoch, values = _column(rows, key)
            if not len(values):
                continue
            edges = np.linspace(0, len(values), min(len(values), MAX_POINTS) + 1).astype(int)
            parts = list(itertools.pairwise(edges))
            x = [epoch[first:last].mean() for first, last in parts]
            y = [panel.factor * merge(values[first:last]) for first, last in parts]
            marker = "." if len(x) < 3 else None  # a line of one point would not be seen
            lines += axes.plot(x, y, color=colour, dashes=dashes, linewidth=width, marker=marker)
    if not lines:
        return None
    shown = np.concatenate([line.get_ydata() for line in lines])
    if panel.log and 0 < 30 * shown.min() < shown.max():  # a narrower range may have no power of ten to label
        axes.set_yscale("log")
    axes.set_xlabel("epoch", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.tick_params(which="minor", labelleft=False)
    axes.grid(color="0.9", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def last_value(panel: Panel, rows: Rows) -> float | None:
    """Return the last value of a run in the units of the panel; None if the run has none."""
    _, values = _column(rows, panel.key)
    return panel.factor * float(values[-1]) if len(values) else None


def _column(rows: Rows, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the epochs and values of the rows that have a number under the key."""
    found = [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
