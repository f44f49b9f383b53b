"""The section of the report about one trial list: error rates, paired differences and DET curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wespeaker.eval.comparison import Comparison, Difference
from wespeaker.eval.det import det_figure
from wespeaker.figures import inline_svg
from wespeaker.nested import flatten
from wespeaker.report.elements import (
    ABSENT,
    Html,
    Section,
    Styles,
    column_head,
    element,
    line_key,
    missing,
    row_head,
    table,
    text_cell,
    text_head,
)
from wespeaker.report.runs import Run, TrialList

Compare = Callable[..., Comparison]  # `compare_scores` with the options of its bootstrap


@dataclass(frozen=True)
class _Rate:
    """A column of the tables of error rates."""

    title: str
    keys: tuple[str, ...]  # where it is in an entry of results.json, in its intervals and in differences
    factor: float
    digits: int
    remark: str = ""

    def find(self, values: Any) -> Any:
        """Return what nested mappings have at `keys`, or None."""
        for key in self.keys:
            values = values.get(key) if isinstance(values, Mapping) else None
        return values

    def text(self, rate: float, sign: str = "") -> str:
        """Return a rate in the units of the column."""
        return f"{self.factor * rate:{sign}.{self.digits}f}"

    def interval(self, low: float, high: float, sign: str = "") -> Html:
        """Return the ends of an interval in the units of the column."""
        return element("small", f"[{self.text(low, sign)}, {self.text(high, sign)}]")


def list_section(
    trial_list: TrialList, runs: Sequence[Run], styles: Styles, *, anchor: str, compare: Compare | None
) -> Section:
    """Show the error rates of the runs that were scored on a list, and say of the others that they were not.

    Args:
        trial_list: the list.
        runs: all runs of the report.
        styles: how their lines look.
        anchor: the id of the section.
        compare: gives differences to the list's first run that has scores; None shows none.
    """
    columns = _columns(trial_list)
    notes = dict.fromkeys(run.results["note"] for run in trial_list.runs if run.results and run.results.get("note"))
    contents = [
        element("p", f"{trial_list.num_target:,} target and {trial_list.num_nontarget:,} nontarget trials."),
        *(element("p", note) for note in notes),
        _rates_table(trial_list, columns, styles),
    ]
    lost = [_percent(far) for far in _fars(trial_list) if not _false_accepts(trial_list, far)]
    if lost:
        contents.append(element("p", f"Too few nontarget trials to resolve FAR {', '.join(lost)}.", class_="muted"))
    for run in runs:
        if run.results is None:
            contents.append(missing(run.folder / "scores" / "results.json", "its error rates are not shown"))
        elif run not in trial_list.runs:
            contents.append(element("p", f"{run.folder} was not scored on these trials.", class_="missing"))
    if compare is not None:
        contents += _differences(trial_list, columns, styles, compare)
    contents += _det(trial_list, styles, anchor=anchor)
    return Section(anchor, trial_list.name, contents)


def _columns(trial_list: TrialList) -> list[_Rate]:
    """Return the columns for the rates of any run, without the FARs that the list cannot resolve."""
    columns = [_Rate("EER %", ("eer",), 100, 3)]
    for p_target in dict.fromkeys(key for run in trial_list.runs for key in run.rates[trial_list.name]["min_dcf"]):
        columns.append(_Rate(f"minDCF({p_target})", ("min_dcf", p_target), 1, 4))
    for far in _fars(trial_list):
        if accepts := _false_accepts(trial_list, far):
            remark = f"{accepts:,} false accept{'s' if accepts > 1 else ''} at most"
            columns.append(_Rate(f"TAR % at FAR {_percent(far)}", ("tar_at_far", far), 100, 2, remark))
    return columns


def _fars(trial_list: TrialList) -> list[str]:
    """Return the FARs that were asked of any run, the largest first."""
    asked = {far for run in trial_list.runs for far in run.rates[trial_list.name]["tar_at_far"]}
    return sorted(asked, key=float, reverse=True)


def _false_accepts(trial_list: TrialList, far: str) -> int:
    """Return how many nontarget trials may be accepted at a FAR; 0 where the list cannot resolve it."""
    return math.floor(float(far) * trial_list.num_nontarget * (1 + 1e-12))  # 0.001 * 31000 is just below 31


def _percent(far: str) -> str:
    return f"{100 * float(far):g} %"


def _rates_table(trial_list: TrialList, columns: Sequence[_Rate], styles: Styles) -> Html:
    rows = []
    intervals: dict[str, None] = {}  # an ordered set
    for run in trial_list.runs:
        entry = run.rates[trial_list.name]
        loss, *numbers = _loss(run)
        settings = [text_cell(loss), *(element("td", number) for number in numbers)]
        rates = [_rate_cell(entry, column) for column in columns]
        rows.append([row_head(run.name, styles[run.name]), *settings, *rates])
        if interval := entry.get("interval"):
            level, replicates = 100 * interval["level"], interval["replicates"]
            intervals[f"{level:g} % intervals (bootstrap over speakers, {replicates:,} replicates)"] = None
    heads = [column_head("system"), text_head("loss"), *(column_head(letter) for letter in "αsm")]
    heads += [column_head(column.title, column.remark) for column in columns]
    return table(f"Error rates; in brackets {' or '.join(intervals)}" if intervals else "Error rates", heads, rows)


def _loss(run: Run) -> list[str]:
    """Return project_type, alpha, scale and the margin of the last epochs."""
    config = flatten(run.config or {})
    margin = "final_margin" if config.get("margin_update.update_margin", True) else "initial_margin"
    values = [config.get(f"projection_args.{key}") for key in ("project_type", "alpha", "scale")]
    values.append(config.get(f"margin_update.{margin}"))
    return [ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values]


def _rate_cell(entry: Mapping[str, Any], column: _Rate) -> Html:
    found, interval = column.find(entry), column.find(entry.get("interval"))
    if found is None:
        return element("td", ABSENT)
    rate = found["tar"] if isinstance(found, Mapping) else found
    return element("td", column.text(rate), *([] if interval is None else [column.interval(*interval)]))


def _differences(trial_list: TrialList, columns: Sequence[_Rate], styles: Styles, compare: Compare) -> Iterator[Html]:
    """Yield a table of paired differences, if two runs left their scores."""
    scored = [run for run in trial_list.runs if trial_list.name in run.scores]
    if len(scored) < 2:
        return
    first, *others = scored
    found = compare(
        [run.scores[trial_list.name].file for run in scored],
        fars=[float(far) for far in _fars(trial_list)],
        p_target=float(next(iter(first.rates[trial_list.name]["min_dcf"]))),
    )
    rows = []
    for run, differences in zip(others, found.differences, strict=True):
        cells = [_difference_cell(column.find(differences), column) for column in columns]
        rows.append([row_head(run.name, styles[run.name]), *cells])
    heads = [column_head("system"), *(column_head(column.title) for column in columns)]
    yield table(f"Difference to {first.name} on the same trials, with interval and p-value", heads, rows)


def _difference_cell(difference: Difference | None, column: _Rate) -> Html:
    if difference is None:
        return element("td", ABSENT)
    p_value = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.3f}"
    interval = column.interval(difference.low, difference.high, "+")
    return element("td", column.text(difference.value, "+"), interval, element("small", p_value))


def _det(trial_list: TrialList, styles: Styles, *, anchor: str) -> Iterator[Html]:
    """Yield the DET plot of the runs that left their scores, and name those that did not."""
    tradeoffs = {}
    for run in trial_list.runs:
        scores = run.scores.get(trial_list.name)
        if scores is None:
            yield missing(run.folder / "scores" / f"{trial_list.name}.score", f"no DET curve of {run.name}")
            continue
        if (scores.tradeoff.num_target, scores.tradeoff.num_nontarget) != trial_list.counts:
            text = f"{scores.file} holds other trials than results.json beside it: no DET curve of {run.name}."
            yield element("p", text, class_="missing")
            continue
        tradeoffs[run.name] = scores.tradeoff
    if not tradeoffs:
        return
    fars = [float(far) for far in _fars(trial_list)]
    figure = det_figure(tradeoffs, fars=fars, styles=styles, legend=False, size=(5.0, 4.8))
    label = f"DET curves of {', '.join(tradeoffs)} on {trial_list.name}; the table above has points of them"
    explanation = (
        "Detection error trade-off: lower and further left is better. A dot marks the equal error rate, a diamond "
        "the largest TAR at an asked FAR."
    )
    drawing = Html(inline_svg(figure, prefix=anchor, label=label))
    yield element(
        "figure", line_key(tradeoffs, styles), drawing, element("figcaption", explanation, class_="muted"), class_="det"
    )
