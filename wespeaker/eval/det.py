"""Detection error trade-off (DET) plots that reach the lowest FAR a trial list can resolve."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from wespeaker.errors import InputError
from wespeaker.eval.metrics import ErrorTradeoff, eer, tar_at_far
from wespeaker.files import replacing

# Rates that may be labelled or end an axis.
_TICKS = (
    *(1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05),
    *(0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999),
)
# Okabe and Ito's palette (2008), told apart with any colour vision; line styles take over after seven.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_CELLS = 3000  # curves are thinned to this grid, finer than the pixels of the picture


def plot_det(
    tradeoffs: Mapping[str, ErrorTradeoff],
    path: str | os.PathLike[str],
    *,
    fars: Sequence[float] = (),
    title: str | None = None,
) -> None:
    """Write a PNG with one DET curve (Martin et al., Eurospeech 1997) for each list or system.

    Both axes are probits. The FAR axis reaches 1 / (number of nontarget trials) of the largest list; below, where
    no list has a single false accept, it is shaded. A curve joins the operating points by straight lines; it is
    thin and dotted below the lowest FAR of its own list. A dot marks the EER, a diamond the largest TAR at each
    asked FAR that the list resolves.

    Args:
        tradeoffs: the curves by the name they have in the legend.
        path: the PNG; it appears whole or not at all.
        fars: asked false acceptance rates, in (0, 1], marked by vertical lines.
        title: a line above the plot.

    Raises:
        InputError: without any curve.
    """
    # No pyplot: its figures and back-end are global state, and a back-end with windows fails without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not tradeoffs:
        raise InputError("a DET plot needs at least one list of scores")
    x_limits, y_limits = _limits(tradeoffs)
    figure = Figure(figsize=(7.6, 6.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _decorate(axes, x_limits, y_limits, 1 / max(t.num_nontarget for t in tradeoffs.values()), fars)
    styles = itertools.cycle(itertools.product(_LINES, _COLOURS))
    for (name, tradeoff), (line, colour) in zip(tradeoffs.items(), styles, strict=False):
        rate = eer(tradeoff)
        label = f"{name}: EER {100 * rate:.2f} %"
        x, y = _curve(tradeoff, x_limits, y_limits)
        first = int(np.searchsorted(x, ndtri(1 / tradeoff.num_nontarget)))  # x ascends
        axes.plot(x[: first + 1], y[: first + 1], ":", color=colour, linewidth=1)
        axes.plot(x[first:], y[first:], line, color=colour, linewidth=1.6, label=label)
        points = [
            (point.far, 1 - point.tar) for point in (tar_at_far(tradeoff, far) for far in fars) if point.resolvable
        ]
        _mark(axes, points, "D", 5.5, colour, face="white")
        _mark(axes, [(rate, rate)], "o", 7, colour, face=colour)
    axes.plot([], [], "o", color="0.4", label="equal error rate")
    if fars:
        axes.plot([], [], "D", color="0.4", markerfacecolor="white", label="largest TAR at an asked FAR")
    axes.legend(loc="upper right", fontsize=9, framealpha=0.95, edgecolor="0.85")
    if title:
        axes.set_title(title, fontsize=11)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _limits(tradeoffs: Mapping[str, ErrorTradeoff]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Choose the ends of the FAR and of the FRR axis, as rates."""
    curves = tradeoffs.values()
    lowest = 1 / max(t.num_nontarget for t in curves)
    worst = max(eer(t) for t in curves)
    # The shaded part is a fifth of the lowest FAR: a narrow band of the probit axis.
    x_low, x_high = min(0.1, lowest / 5), _tick_above(max(0.4, worst))
    worst_frr = max(1 - tar_at_far(t, lowest).tar for t in curves)
    best_frr = min(float(t.frr[t.far <= x_high][-1]) for t in curves)
    y_low = min(0.1, max(_tick_below(best_frr), 0.3 / max(t.num_target for t in curves)))
    return (x_low, x_high), (y_low, _tick_above(max(0.4, worst_frr, worst)))


def _tick_above(rate: float) -> float:
    return next((tick for tick in _TICKS if tick > rate), _TICKS[-1])


def _tick_below(rate: float) -> float:
    return next((tick for tick in reversed(_TICKS) if tick < rate), _TICKS[0])


def _curve(
    tradeoff: ErrorTradeoff, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probits of FAR and FRR, thinned: of neighbouring points in one cell of the grid the first is kept."""
    # Rates of 0 and 1 have infinite probits; just outside the axes is far enough.
    x = ndtri(np.clip(tradeoff.far, x_limits[0] / 2, (1 + x_limits[1]) / 2))
    y = ndtri(np.clip(tradeoff.frr, y_limits[0] / 2, (1 + y_limits[1]) / 2))
    cells = np.stack([np.floor(_CELLS * v / np.ptp(ndtri(limits))) for v, limits in ((x, x_limits), (y, y_limits))])
    kept = np.append(True, np.any(np.diff(cells) != 0, axis=0))
    kept[int(np.argmax(tradeoff.num_false_accepts > 0))] = True  # the solid line begins here
    kept[-1] = True
    return x[kept], y[kept]


def _mark(
    axes: Any, points: Sequence[tuple[float, float]], marker: str, size: float, colour: str, *, face: str
) -> None:
    """Draw markers at (FAR, FRR) points; those with a rate of 0 or 1 have no place on a probit axis."""
    inside = [point for point in points if min(point) > 0 and max(point) < 1]
    if inside:
        x, y = ndtri(np.array(inside)).T
        axes.plot(x, y, marker, markersize=size, color=colour, markerfacecolor=face, markeredgewidth=1.4, zorder=3)


def _decorate(
    axes: Any,
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    lowest_far: float,
    fars: Sequence[float],
) -> None:
    """Draw what lies behind the curves: percent ticks, grid, shaded region, the EER diagonal, asked FARs."""
    for axis, (low, high), name in (
        (axes.xaxis, x_limits, "False acceptance rate (FAR)"),
        (axes.yaxis, y_limits, "False rejection rate (1 − TAR)"),
    ):
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axis.set_ticks(ndtri(ticks), labels=[f"{100 * tick:.6g} %" for tick in ticks], fontsize=8.5)
        axis.set_label_text(name, fontsize=10.5)
    axes.set_xlim(*ndtri(x_limits))
    axes.set_ylim(*ndtri(y_limits))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

    diagonal = ndtri([max(x_limits[0], y_limits[0]), min(x_limits[1], y_limits[1])])
    axes.plot(diagonal, diagonal, color="0.75", linewidth=0.9, zorder=1)
    for far in fars:
        if lowest_far <= far < x_limits[1]:
            axes.axvline(ndtri(far), color="0.55", linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    left, edge = ndtri([x_limits[0], min(lowest_far, x_limits[1])])
    axes.axvspan(left, edge, color="0.92", zorder=0)
    axes.annotate(
        "not resolvable: less than one false accept",
        ((left + edge) / 2, 0.03),
        xycoords=axes.get_xaxis_transform(),  # x in data, y in fractions of the axes
        rotation=90,
        ha="center",
        fontsize=8,
        color="0.45",
    )
