"""The table of error rates that a user sees at the end of a run, made from the contents of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any


def results_table(results: Mapping[str, Any], *, people: str = "speakers") -> str:
    """Lay out results for reading: a block for each trial list, a line for each FAR, in 100 columns.

    Args:
        results: what `wespeaker.eval.scoring` writes to results.json; rates in [0, 1] there, in % here. Where a list
            has intervals, they stand below its EER and minDCF and beside each TAR.
        people: what those are called over whom the bootstrap draws.

    Returns:
        Lines joined by newlines, without one at the end; the note, if there is one, comes first.
    """
    lists: Mapping[str, Mapping[str, Any]] = results["trials"]
    intervals = next((result["interval"] for result in lists.values() if "interval" in result), None)
    costs = [f"minDCF({p_target})" for p_target in next(iter(lists.values()))["min_dcf"]]
    columns = ["trial list", "EER %", *costs, "FAR %", "TAR %"]
    widths = [20, 11 if intervals else 6, *[max(11, len(cost)) for cost in costs], 5, 6]
    if intervals:
        columns.append(_level(intervals))
        widths.append(11)
    columns += ["false acc.", "threshold"]
    widths += [10, 9]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{cells[0]:<{widths[0]}}"]
        padded += [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=False)]
        return "  ".join(padded).rstrip()

    header = line(columns)
    lines = [results["note"], ""] if results.get("note") else []
    lines += [header, "-" * len(header)]
    for name, result in lists.items():
        if len(name) > widths[0]:
            lines.append(name)
            name = ""
        blank = ["", "", *[""] * len(costs)]
        for left, point in zip_longest(_left(name, result, people), _points(result, beside=intervals is not None)):
            lines.append(line([*(left or blank), *(point or [])]))
    if intervals:
        lines += ["", _footnote(intervals, people)]
    return "\n".join(lines)


def _range(interval: Sequence[float], digits: int) -> str:
    """Return an interval such as ``3.91–5.62``."""
    low, high = (f"{end:.{digits}f}" for end in interval)
    return f"{low}–{high}"


def _level(intervals: Mapping[str, Any]) -> str:
    return f"{100 * intervals['level']:g} %"


def _footnote(intervals: Mapping[str, Any], people: str) -> str:
    return (
        f"a–b: {_level(intervals)} intervals of a bootstrap over {people} ({intervals['replicates']:,} replicates, "
        f"seed {intervals['seed']})"
    )


def _left(name: str, result: Mapping[str, Any], people: str) -> list[list[str]]:
    """Return the cells of the columns that do not depend on a FAR: list, EER, costs; a few lines."""
    eer, costs = f"{100 * result['eer']:.3f}", [f"{dcf:.4f}" for dcf in result["min_dcf"].values()]
    left = [[name, eer, *costs], [f"  {result['num_target']:,} target"], [f"  {result['num_nontarget']:,} nontarget"]]
    if interval := result.get("interval"):
        left[1] += [_range([100 * end for end in interval["eer"]], 2)]
        left[1] += [_range(ends, 3) for ends in interval["min_dcf"].values()]
        left.append([f"  {interval[f'num_{people}']:,} {people}"])
    return [[*cells, *[""] * (len(left[0]) - len(cells))] for cells in left]


def _points(result: Mapping[str, Any], *, beside: bool) -> list[list[str]]:
    """Return the cells of each FAR; what a list is too short to show is said instead of a number.

    Args:
        result: the entry of a list.
        beside: whether the table has a column of intervals.
    """
    points = []
    for far, point in result["tar_at_far"].items():
        percent = f"{100 * float(far):g}"
        if not point["resolvable"]:
            points.append([percent, f"not resolvable ({result['num_nontarget']:,} nontargets)"])
            continue
        interval = result["interval"]["tar_at_far"][far] if "interval" in result else None
        middle = [_range([100 * end for end in interval], 2) if interval else ""] if beside else []
        last = [f"{point['num_false_accepts']:,}", f"{point['threshold']:.5f}"]
        points.append([percent, f"{100 * point['tar']:.2f}", *middle, *last])
    return points
