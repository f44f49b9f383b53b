"""HTML whose text is escaped unless it says that it is markup, and the parts that sections of the report share."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wespeaker.figures import LineStyle

ABSENT = "–"
Styles = Mapping[str, LineStyle]  # by the name of the run


class Html(str):
    """Markup; everything else is text."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of the page with a heading."""

    anchor: str  # its id
    title: str
    contents: Sequence[Html]


def element(tag: str, *children: object, **attributes: str | None) -> Html:
    """Return ``<tag attributes>children</tag>``; children that are not `Html` are escaped, and so are attributes.

    Underscores in the names of attributes become hyphens, and one at the end is dropped (``class_``); an attribute
    that is None is left out.

    >>> element("td", "a < b", element("b", "!"), class_="name", aria_label=None)
    '<td class="name">a &lt; b<b>!</b></td>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: object) -> Html:
    """Return the children one after the other, escaped unless they are `Html`."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children))


def table(caption: str, head: Sequence[Html], rows: Iterable[Sequence[Html]]) -> Html:
    """Return a table with its caption, in a box of its own that scrolls, with the keyboard too."""
    contents = element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *(element("tr", *row) for row in rows)),
        aria_label=caption,
    )
    box = element("div", contents, class_="scroll", role="region", tabindex="0", aria_label=f"{caption} (scrolls)")
    return element("figure", element("figcaption", caption), box, class_="table")


def column_head(text: str, remark: str = "") -> Html:
    """Return the head of a column of numbers, with a remark in small letters below."""
    return element("th", text, *([element("small", remark)] if remark else []), scope="col")


def text_head(text: str) -> Html:
    """Return the head of a column of `text_cell`."""
    return element("th", text, scope="col", class_="text")


def row_head(text: str, style: LineStyle | None = None) -> Html:
    """Return the head of a row, with the line of the system that it is about."""
    return element("th", *([] if style is None else [_swatch(style)]), text, scope="row")


def text_cell(value: object) -> Html:
    """Return a cell of text, whose lines may break."""
    return element("td", ABSENT if value is None else value, class_="text")


def line_key(names: Iterable[str], styles: Styles) -> Html:
    """Return what explains the lines of a plot: a list of the runs that they stand for."""
    return element("ul", *(element("li", _swatch(styles[name]), name) for name in names), class_="key")


def missing(path: Path, consequence: str) -> Html:
    """Return the sentence that stands where a file would have been shown."""
    return element("p", f"{path} is missing: {consequence}.", class_="missing")


def _swatch(style: LineStyle) -> Html:
    colour = "var(--ink)" if style.colour == "#000000" else style.colour
    line = element(
        "line",
        x1="0",
        y1="5",
        x2="32",
        y2="5",
        stroke_width="2.5",
        stroke_dasharray=" ".join(f"{2.5 * length:g}" for length in style.dashes) or None,
        style=f"stroke: {colour}",
    )
    return element("svg", line, class_="swatch", viewBox="0 0 32 10", aria_hidden="true")
