"""DET plots: a readable picture for every kind of list, made quickly and without pyplot."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy.special import ndtri

from wespeaker.errors import InputError
from wespeaker.eval import det
from wespeaker.eval.det import plot_det
from wespeaker.eval.metrics import ErrorTradeoff, error_tradeoff

LABELS = np.arange(400) < 150


def _gaussian(num: int, *, shift: float = 3.0) -> ErrorTradeoff:
    rng = np.random.default_rng(0)
    is_target = np.arange(num) % 2 == 0
    return error_tradeoff(rng.standard_normal(num) + shift * is_target, is_target)


@pytest.mark.parametrize(
    "tradeoff",
    [
        pytest.param(_gaussian(2000), id="gaussian"),
        pytest.param(error_tradeoff(LABELS * 1.0, LABELS), id="perfect"),
        pytest.param(error_tradeoff(-1.0 * LABELS, LABELS), id="inverted"),
        pytest.param(error_tradeoff(np.zeros(400), LABELS), id="constant"),
        pytest.param(error_tradeoff([0.5, 0.1], [True, False]), id="two trials"),
        pytest.param(error_tradeoff([0.5, 0.1], [False, True]), id="two trials, inverted"),
    ],
)
def test_every_kind_of_list_makes_a_picture(tmp_path: Path, tradeoff: ErrorTradeoff) -> None:
    plot_det({"one": tradeoff, "two": _gaussian(50)}, tmp_path / "det.png", fars=(1e-1, 1e-3), title="both")
    plot_det({"one": tradeoff}, tmp_path / "det.png")
    picture = matplotlib.image.imread(tmp_path / "det.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 600
    assert picture[..., :3].std() > 0.05  # not blank
    assert [path.name for path in tmp_path.iterdir()] == ["det.png"]


def test_half_a_million_trials_take_about_a_second(tmp_path: Path) -> None:
    tradeoff = _gaussian(550_894)
    start = time.process_time()
    plot_det({"vox1_H_cleaned": tradeoff}, tmp_path / "det.png", fars=(1e-2, 1e-3, 1e-4, 1e-5))
    assert time.process_time() - start < 5


def test_a_thinned_curve_stays_on_the_operating_points() -> None:
    tradeoff = _gaussian(100_000)
    limits = (1e-5, 0.5), (1e-5, 0.5)
    x, y = det._curve(tradeoff, *limits)
    assert len(x) < 10_000 < len(tradeoff.far)
    points = {(float(a), float(b)) for a, b in zip(ndtri(tradeoff.far), ndtri(tradeoff.frr), strict=True)}
    inside = (x > ndtri(1e-5)) & (x < 0) & (y > ndtri(1e-5)) & (y < 0)
    assert inside.sum() > 1000
    assert {(float(a), float(b)) for a, b in zip(x[inside], y[inside], strict=True)} <= points


def test_the_far_axis_reaches_the_lowest_far_that_any_list_resolves() -> None:
    (low, high), _ = det._limits({"small": _gaussian(200), "large": _gaussian(20_000)})
    assert 1 / 100_000 < low < 1 / 10_000 < 0.4 <= high


def test_more_curves_than_colours(tmp_path: Path) -> None:
    plot_det({f"system {i}": _gaussian(100, shift=i / 2) for i in range(9)}, tmp_path / "det.png")
    assert (tmp_path / "det.png").stat().st_size > 10_000


def test_no_curve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        plot_det({}, tmp_path / "det.png")


def test_pyplot_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    plot_det({"one": _gaussian(100)}, tmp_path / "det.png")
