"""DET plots: a readable picture for every kind of list, made quickly and without pyplot."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from scipy.special import ndtri

from wespeaker.errors import InputError
from wespeaker.eval import det
from wespeaker.eval.det import det_figure, plot_det
from wespeaker.eval.metrics import ErrorTradeoff, error_tradeoff
from wespeaker.figures import line_style

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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["det.png", "det.svg"]
    ElementTree.parse(tmp_path / "det.svg")  # well-formed


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


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot_det({"system": _gaussian(2000)}, tmp_path / f"{name}.png", fars=(1e-2,))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_band_lies_between_its_bounds_on_the_probit_axes() -> None:
    far, low, high = np.array([[0.01, 0.1, 0.3], [0.05, 0.02, 0.01], [0.2, 0.1, 0.05]])
    figure = det_figure({"one": _gaussian(2000), "two": _gaussian(500)}, bands={"two": (far, low, high)})
    bands = [each for each in figure.axes[0].collections if len(each.get_paths())]
    colours = [matplotlib.colors.to_hex(each.get_facecolor()[0]) for each in bands]
    (band,) = [each for each, colour in zip(bands, colours, strict=True) if colour == line_style(1).colour.lower()]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(9).tolist()}
    expected = np.concatenate([ndtri([far, low]).T, ndtri([far, high]).T]).round(9)
    assert {tuple(corner) for corner in expected.tolist()} == corners
    assert "confidence band" in " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())


def test_bounds_of_0_and_1_stay_at_the_edges(tmp_path: Path) -> None:
    band = [0.0, 0.1, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    plot_det({"one": _gaussian(2000)}, tmp_path / "det.png", bands={"one": band})
    assert (tmp_path / "det.png").stat().st_size > 10_000


def test_a_band_without_a_curve_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no curves of other$"):
        det_figure({"one": _gaussian(100)}, bands={"other": ([0.1], [0.1], [0.2])})


def test_styles_are_kept_where_systems_are_left_out() -> None:
    styles = {name: line_style(index) for index, name in enumerate(("one", "two", "three"))}
    figure = det_figure({"three": _gaussian(500)}, styles=styles)
    labelled = [line for line in figure.axes[0].lines if line.get_label().startswith("three")]
    assert [line.get_color() for line in labelled] == [line_style(2).colour]


@pytest.mark.parametrize("size", [(7.6, 6.6), (5.0, 4.8)])
@pytest.mark.parametrize("num", [60, 2000, 200_000])
def test_labels_of_ticks_do_not_touch(size: tuple[float, float], num: int) -> None:
    figure = det_figure({"one": _gaussian(num)}, size=size)
    figure.draw_without_rendering()
    for axis, side in ((figure.axes[0].xaxis, 0), (figure.axes[0].yaxis, 1)):
        labels = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert len(labels) >= 3
        ends = sorted((box.min[side], box.max[side]) for box in labels)
        assert all(first[1] + 2 < second[0] for first, second in itertools.pairwise(ends))


def test_names_are_not_formulas(tmp_path: Path) -> None:
    plot_det({r"a$\frac$": _gaussian(100)}, tmp_path / "det.png", title=r"$\frac$")
    assert (tmp_path / "det.png").stat().st_size > 10_000


def test_no_curve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        plot_det({}, tmp_path / "det.png")


def test_pyplot_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    plot_det({"one": _gaussian(100)}, tmp_path / "det.png")
