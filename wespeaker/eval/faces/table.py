"""The table of face verification: error rates as of speech, and how each list was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wespeaker.eval.table import results_table


def face_table(results: Mapping[str, Any]) -> str:
    """Lay out results for reading: the table of error rates, and a few lines on each list, in 100 columns.

    Args:
        results: the contents of results.json; rates in [0, 1] there, in % here.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    lines = [results_table(results, people="identities"), ""]
    for name, result in results["trials"].items():
        protocol = result["protocol"]
        lines += [f"{name}:", *_PROTOCOLS[protocol["name"]](protocol)]
        if "intervals" in protocol:
            lines.append(f"  intervals: {protocol['intervals']}")
    return "\n".join(lines)


def _folds(protocol: Mapping[str, Any]) -> list[str]:
    accuracy, error = 100 * protocol["accuracy"], 100 * protocol["standard_error"]
    thresholds = protocol["thresholds"]
    return [
        f"  accuracy of {len(thresholds)} folds {accuracy:.3f} ± {error:.3f} % (standard error), "
        f"thresholds {min(thresholds):.4f}–{max(thresholds):.4f}",
        f"  {protocol['num_images']:,} images, mirror images: {protocol['flip']}",
    ]


def _templates(protocol: Mapping[str, Any]) -> list[str]:
    mode = protocol["mode"]
    norms = "kept" if "N1" in mode else "set to 1"
    weights = "detector scores" if "D1" in mode else "none"
    return [
        f"  mode {mode}: norms {norms}, weights {weights}, mirror images: {protocol['flip']}",
        f"  {protocol['num_images']:,} images in {protocol['num_templates']:,} templates",
    ]


_PROTOCOLS = {"folds": _folds, "templates": _templates}
