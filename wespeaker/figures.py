"""Figures of matplotlib without pyplot: PNG and SVG files that come out the same each time, SVG inside a page."""

from __future__ import annotations

import html
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wespeaker.extras import require
from wespeaker.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008), told apart with any colour vision. Neighbours differ in their dashes too, so that
# they are told apart in grey; seven colours and four dash patterns give 28 pairs before one comes again.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2.2, 1.4), (7, 1.6, 1.6, 1.6))  # on, off, … in line widths
_NOTHING_ELSE = {"Date": None, "Creator": None, "Format": None, "Type": None}  # metadata that matplotlib leaves out


class LineStyle(NamedTuple):
    """How the lines of one system look, in every plot."""

    colour: str  # '#rrggbb'
    dashes: tuple[float, ...]  # lengths on and off, in line widths; () is a solid line


def line_style(index: int) -> LineStyle:
    """Return the style of the system with this index among those that are compared."""
    return LineStyle(_COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)])


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; no pyplot, whose figures and back-end are global state.

    Raises:
        NotInstalledError: matplotlib is not installed.

    """
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)  # a back-end with windows would fail without a display
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG and beside it, under the same name with ``.svg``, the drawing; each whole or not at all.

    The same figure gives the same bytes: no date, and ids that depend on the contents alone. Letters are drawn as
    outlines in the SVG: it looks the same on a machine without the font.
    """
    with replacing(path) as png, replacing(Path(path).with_suffix(".svg")) as svg:
        figure.savefig(png, format="png")
        svg.write_text(_svg(figure, fonttype="path"), encoding="utf-8")


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """Return the figure as an ``<svg>`` element of an HTML page.

    It takes the width that it is given, the font of the page, and no background. Greys become mixtures of the CSS
    variables ``--ink`` (black) and ``--paper`` (white), so that a dark page can turn them around.

    Args:
        figure: the figure.
        prefix: makes the ids of the element differ from those of others on the page.
        label: what a screen reader says instead of the drawing.
    """
    svg = _svg(figure, fonttype="none")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' width="[^"]*" height="[^"]*"', f' role="img" aria-label="{html.escape(label)}"', svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"\b(fill|stroke): #(..)\2\2\b", _mixture, svg)
    return svg.strip()


def _mixture(match: re.Match[str]) -> str:
    ink = 100 - round(int(match[2], 16) / 2.55)
    return f"{match[1]}: color-mix(in srgb, var(--ink) {ink}%, var(--paper))"


def _svg(figure: Figure, *, fonttype: str) -> str:
    from matplotlib import rc_context

    text = io.StringIO()
    # The ids of clip paths and markers are hashes with a random salt, unless one is set here: savefig has no argument.
    with rc_context({"svg.hashsalt": "wespeaker", "svg.fonttype": fonttype}):
        figure.savefig(text, format="svg", transparent=fonttype == "none", metadata=_NOTHING_ELSE)
    return text.getvalue()
