"""The table of error rates that a user sees at the end of a run, made from the contents of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def results_table(results: Mapping[str, Any]) -> str:
    """Lay out results for reading: a block for each trial list, a line for each FAR, in 100 columns.

    Args:
        results: what `wespeaker.eval.scoring` writes to results.json; rates in [0, 1] there, in % here.

    Returns:
        Lines joined by newlines, without one at the end; the note, if there is one, comes first.
    """
    lists: Mapping[str, Mapping[str, Any]] = results["trials"]
    costs = [f"minDCF({p_target})" for p_target in next(iter(lists.values()))["min_dcf"]]
    # A name of more than 33 letters makes lines longer than 100 columns; it is not cut.
    widths = [max(24, *map(len, lists)), 6, *map(len, costs), 5, 6, 13, 9]

    def line(first: str, *others: str) -> str:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=False)]
        return "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()

    header = line("trial list", "EER %", *costs, "FAR %", "TAR %", "false accepts", "threshold")
    lines = [results["note"], ""] if results.get("note") else []
    lines += [header, "-" * len(header)]
    for name, result in lists.items():
        left = [name, f"  {result['num_target']:,} target", f"  {result['num_nontarget']:,} nontarget"]
        rates = [f"{100 * result['eer']:.3f}", *(f"{dcf:.4f}" for dcf in result["min_dcf"].values())]
        points = list(result["tar_at_far"].items())
        for row in range(max(len(left), len(points))):
            lines.append(
                line(
                    left[row] if row < len(left) else "",
                    *(rates if row == 0 else [""] * len(rates)),
                    *(_point(points[row], result["num_nontarget"]) if row < len(points) else []),
                )
            )
    return "\n".join(lines)


def _point(item: tuple[str, Mapping[str, Any]], num_nontarget: int) -> list[str]:
    """Return the cells of one FAR; what a list is too short to show is said instead of a number."""
    far, point = item
    percent = f"{100 * float(far):g}"
    if not point["resolvable"]:
        return [percent, f"not resolvable ({num_nontarget:,} nontargets)"]
    return [
        percent,
        f"{100 * point['tar']:.2f}",
        f"{point['num_false_accepts']:,}",
        f"{point['threshold']:.5f}",
    ]
