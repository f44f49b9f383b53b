"""The table of results: every figure is there, in 100 columns."""

from __future__ import annotations

from typing import Any

import pytest

from wespeaker.eval.table import results_table


def _result(*, intervals: bool) -> dict[str, Any]:
    point = {"tar": 0.8213, "far": 0.01, "threshold": 0.56341, "num_false_accepts": 2750, "resolvable": True}
    low = {**point, "tar": 0.1, "num_false_accepts": 0, "resolvable": False}
    result: dict[str, Any] = {
        "num_target": 275_488,
        "num_nontarget": 275_406,
        "eer": 0.1234567,
        "min_dcf": {"0.01": 0.69431},
        "tar_at_far": {"0.01": point, "0.001": point, "1e-06": low},
    }
    if intervals:
        result["interval"] = {
            "level": 0.95,
            "replicates": 1000,
            "seed": 0,
            "num_speakers": 1190,
            "eer": [0.1201, 0.1298],
            "min_dcf": {"0.01": [0.651, 0.7321]},
            "tar_at_far": {"0.01": [0.7912, 0.8499], "0.001": [0.7912, 1.0], "1e-06": None},
        }
    return result


@pytest.mark.parametrize("name", ["vox1_H_cleaned", "vox2_dev_asnorm300_vox1_H_cleaned"])
def test_every_figure_is_in_a_line_of_at_most_100_columns(name: str) -> None:
    table = results_table({"note": "a note", "trials": {name: _result(intervals=True), "b": _result(intervals=True)}})
    lines = table.splitlines()
    assert lines[0] == "a note"
    assert max(map(len, lines)) <= 100
    block = "\n".join(lines[4 : 9 if len(name) > 20 else 8])
    for text in (name, "12.346", "0.6943", "82.13", "79.12–84.99", "2,750", "0.56341"):
        assert text in block
    for text in ("275,488 target", "275,406 nontarget", "1,190 speakers", "12.01–12.98", "0.651–0.732", "79.12–100.00"):
        assert text in block
    assert "not resolvable (275,406 nontargets)" in block
    assert lines[-1] == "a–b: 95 % intervals of a bootstrap over speakers (1,000 replicates, seed 0)"


def test_figures_stand_below_their_headings() -> None:
    lines = results_table({"trials": {"a": _result(intervals=True)}}).splitlines()
    header, first, second = lines[0], lines[2], lines[3]
    for heading, text, line in (
        ("EER %", "12.346", first),
        ("EER %", "12.01–12.98", second),
        ("minDCF(0.01)", "0.6943", first),
        ("TAR %", "82.13", first),
        ("95 %", "79.12–84.99", first),
        ("threshold", "0.56341", first),
    ):
        assert header.index(heading) + len(heading) == line.index(text) + len(text)


def test_without_intervals_there_is_no_column_for_them() -> None:
    table = results_table({"trials": {"a": _result(intervals=False)}})
    assert "95 %" not in table
    assert "–" not in table
    assert "speakers" not in table
    assert "82.13" in table
    assert len(table.splitlines()) == 5
