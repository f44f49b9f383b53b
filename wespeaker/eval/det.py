"""Detection error trade-off (DET) plots that reach the lowest FAR a trial list can resolve."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from wespeaker.errors import InputError, listing
from wespeaker.eval.metrics import ErrorTradeoff, eer, tar_at_far
from wespeaker.figures import LineStyle, line_style, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rates that may be labelled or end an axis.
_TICKS = (
    *(1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05),
    *(0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999),
)
_LABEL_SIZE = (0.51, 0.18)  # inches that the label of a tick needs along the FAR and along the FRR axis
_TITLE_WIDTH = 78  # letters, hardly more than the axes are wide
_BORDER = 0.8  # inches between the edge of the figure and the axes, less above and on the right
_CELLS = 3000  # curves are thinned to this grid, finer than the pixels of the picture


def plot_det(
    tradeoffs: Mapping[str, ErrorTradeoff],
    path: str | os.PathLike[str],
    *,
    fars: Sequence[float] = (),
    title: str | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]] | None = None,
) -> None:
    """Write what `det_figure` draws as a PNG, and beside it the same as SVG.

    Args:
        tradeoffs: as in `det_figure`.
        path: the PNG; the SVG has the same name with ``.svg``. Each appears whole or not at all.
        fars: as in `det_figure`.
        title: as in `det_figure`.
        bands: as in `det_figure`.

    Raises:
        InputError: as `det_figure` does.
    """
    save_figure(det_figure(tradeoffs, fars=fars, title=title, bands=bands), path)


def det_figure(
    tradeoffs: Mapping[str, ErrorTradeoff],
    *,
    fars: Sequence[float] = (),
    title: str | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]] | None = None,
    styles: Mapping[str, LineStyle] | None = None,
    legend: bool = True,
    size: tuple[float, float] = (7.6, 6.6),
) -> Figure:
    """Draw one DET curve (Martin et al., Eurospeech 1997) for each list or system.

    Both axes are probits. The FAR axis reaches 1 / (number of nontarget trials) of the largest list; below, where
    no list has a single false accept, it is shaded. A curve joins the operating points by straight lines; it is
    thin and dotted below the lowest FAR of its own list. A dot marks the EER, a diamond the largest TAR at each
    asked FAR that the list resolves.

    Args:
        tradeoffs: the curves by the name they have in the legend.
        fars: asked false acceptance rates, in (0, 1], marked by vertical lines.
        title: above the plot, in lines of its width.
        bands: for any of the names, FAR (G,) ascending, and lower and upper bounds of the FRR there, (G,) each;
            rates in [0, 1]. The region between is shaded in the colour of the curve.
        styles: how the curves look, by name; None gives them styles in their order.
        legend: whether names and marks are explained in the plot.
        size: width and height, in inches.

    Raises:
        InputError: without any curve; if ``bands`` has a name that ``tradeoffs`` lacks.
    """
    if not tradeoffs:
        raise InputError("a DET plot needs at least one list of scores")
    bands = bands or {}
    if unknown := sorted(bands.keys() - tradeoffs.keys()):
        raise InputError(f"there are bands but no curves of {listing(unknown)}")
    styles = styles or {name: line_style(index) for index, name in enumerate(tradeoffs)}
    x_limits, y_limits = _limits(tradeoffs)
    figure = new_figure(*size)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    lowest_far = 1 / max(t.num_nontarget for t in tradeoffs.values())
    _decorate(axes, x_limits, y_limits, lowest_far, fars, size)
    for name, tradeoff in tradeoffs.items():
        if name in bands:
            _draw_band(axes, bands[name], styles[name].colour, x_limits, y_limits)
        _draw_curve(axes, name, tradeoff, styles[name], x_limits, y_limits, fars)
    if legend:
        _explain(axes, with_fars=bool(fars), with_bands=bool(bands))
    if title:
        axes.set_title(textwrap.fill(title, _TITLE_WIDTH), fontsize=11, parse_math=False)
    return figure


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


def _ticks(limits: tuple[float, float], *, room: float) -> list[float]:
    """Return the rates to label: from the highest down, each at least the share ``room`` of the axis from the last."""
    chosen: list[float] = []
    for tick in reversed([tick for tick in _TICKS if limits[0] <= tick <= limits[1]]):
        if not chosen or ndtri(chosen[-1]) - ndtri(tick) >= room * np.ptp(ndtri(limits)):
            chosen.append(tick)
    return chosen


def _tick_above(rate: float) -> float:
    return next((tick for tick in _TICKS if tick > rate), _TICKS[-1])


def _tick_below(rate: float) -> float:
    return next((tick for tick in reversed(_TICKS) if tick < rate), _TICKS[0])


def _draw_band(
    axes: Any,
    band: tuple[ArrayLike, ArrayLike, ArrayLike],
    colour: str,
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
) -> None:
    far, low, high = (np.asarray(rates, dtype=np.float64) for rates in band)
    edges = _probits(low, y_limits), _probits(high, y_limits)
    shade = axes.fill_between(_probits(far, x_limits), *edges, facecolor=(colour, 0.15), zorder=1)
    shade.set(edgecolor=(colour, 0.5), linewidth=0.6)


def _draw_curve(
    axes: Any,
    name: str,
    tradeoff: ErrorTradeoff,
    style: LineStyle,
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    fars: Sequence[float],
) -> None:
    """Draw the curve, thin where its list resolves nothing, with its EER and the points at the asked FARs."""
    rate, (colour, dashes) = eer(tradeoff), style
    x, y = _curve(tradeoff, x_limits, y_limits)
    first = int(np.searchsorted(x, ndtri(1 / tradeoff.num_nontarget)))  # x ascends
    axes.plot(x[: first + 1], y[: first + 1], ":", color=colour, linewidth=1)
    label = f"{name}: EER {100 * rate:.2f} %"
    axes.plot(x[first:], y[first:], dashes=dashes, color=colour, linewidth=1.6, label=label)
    points = [(point.far, 1 - point.tar) for point in (tar_at_far(tradeoff, far) for far in fars) if point.resolvable]
    _mark(axes, points, "D", 5.5, colour, face="white")
    _mark(axes, [(rate, rate)], "o", 7, colour, face=colour)


def _curve(
    tradeoff: ErrorTradeoff, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probits of FAR and FRR, thinned: of neighbouring points in one cell of the grid the first is kept."""
    x, y = _probits(tradeoff.far, x_limits), _probits(tradeoff.frr, y_limits)
    cells = np.stack([np.floor(_CELLS * v / np.ptp(ndtri(limits))) for v, limits in ((x, x_limits), (y, y_limits))])
    kept = np.append(True, np.any(np.diff(cells) != 0, axis=0))
    kept[int(np.argmax(tradeoff.num_false_accepts > 0))] = True  # the solid line begins here
    kept[-1] = True
    return x[kept], y[kept]


def _probits(rates: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.float64]:
    """Return probits; those of 0 and 1 are infinite, just outside the limits of the axis is far enough."""
    low, high = limits
    return np.asarray(ndtri(np.clip(rates, low / 2, (1 + high) / 2)))


def _mark(
    axes: Any, points: Sequence[tuple[float, float]], marker: str, size: float, colour: str, *, face: str
) -> None:
    """Draw markers at (FAR, FRR) points; those with a rate of 0 or 1 have no place on a probit axis."""
    inside = [point for point in points if min(point) > 0 and max(point) < 1]
    if inside:
        x, y = ndtri(np.array(inside)).T
        axes.plot(x, y, marker, markersize=size, color=colour, markerfacecolor=face, markeredgewidth=1.4, zorder=3)


def _explain(axes: Any, *, with_fars: bool, with_bands: bool) -> None:
    """Add the legend: the curves, and what the marks are."""
    axes.plot([], [], "o", color="0.4", label="equal error rate")
    if with_fars:
        axes.plot([], [], "D", color="0.4", markerfacecolor="white", label="largest TAR at an asked FAR")
    if with_bands:
        axes.fill_between([], [], color="0.4", alpha=0.3, linewidth=0, label="confidence band of the FRR")
    # Long enough to show a whole period of the dashes.
    legend = axes.legend(loc="upper right", fontsize=9, framealpha=0.95, edgecolor="0.85", handlelength=3.4)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is a $


def _decorate(
    axes: Any,
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    lowest_far: float,
    fars: Sequence[float],
    size: tuple[float, float],
) -> None:
    """Draw what lies behind the curves: percent ticks, grid, shaded region, the EER diagonal, asked FARs."""
    for axis, limits, room, name in (
        (axes.xaxis, x_limits, _LABEL_SIZE[0] / (size[0] - _BORDER), "False acceptance rate (FAR)"),
        (axes.yaxis, y_limits, _LABEL_SIZE[1] / (size[1] - _BORDER), "False rejection rate (1 − TAR)"),
    ):
        ticks = _ticks(limits, room=room)
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
