"""Figures: the same bytes each time, and SVG that may stand in a page beside other SVG."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from wespeaker.figures import inline_svg, line_style, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure() -> Figure:
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([1, 2], [3, 5], "o-", color="#0072B2")
    axes.axvspan(1, 1.5, color="0.9")
    axes.set_xlabel("<b> & β")
    return figure


def test_files_are_the_same_each_time_and_have_no_date(tmp_path: Path) -> None:
    save_figure(_figure(), tmp_path / "one.png")
    save_figure(_figure(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert not re.search(r"date|20\d\d-\d\d", svg)
    assert "<text" not in svg  # outlines: no font is needed


def test_ids_on_a_page_are_unique_and_references_find_them() -> None:
    drawings = [inline_svg(_figure(), prefix=prefix, label="a plot") for prefix in ("first", "second")]
    ids = [each for drawing in drawings for each in re.findall(r'\bid="([^"]*)"', drawing)]
    assert len(ids) == len(set(ids)) > 10
    for drawing in drawings:
        references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawing)
        assert references
        assert {"".join(pair) for pair in references} <= set(ids)


def test_an_element_takes_width_font_and_greys_from_the_page() -> None:
    svg = inline_svg(_figure(), prefix="p", label='"quoted" <label>')
    root = ElementTree.fromstring(svg)  # well-formed
    assert root.get("role") == "img"
    assert root.get("aria-label") == '"quoted" <label>'
    assert root.get("width") is None
    assert root.get("viewBox") == "0 0 216 144"
    assert "font-family" not in svg
    assert not re.search(r"(fill|stroke): #(..)\2\2\b", svg)
    assert "fill: color-mix(in srgb, var(--ink) 10%, var(--paper))" in svg  # the grey 0.9
    assert "stroke: #0072b2" in svg
    assert "<b> & β" in "".join(root.itertext())


def test_systems_differ_in_their_lines_and_neighbours_in_their_dashes() -> None:
    styles = [line_style(index) for index in range(28)]
    assert len(set(styles)) == 28
    assert all(a.dashes != b.dashes and a.colour != b.colour for a, b in itertools.pairwise(styles))
