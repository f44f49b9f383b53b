import math

import pytest

from wespeaker.config import ExponentialDecreaseArgs, MarginUpdate, StepDecreaseArgs
from wespeaker.train.schedules import learning_rate, margin, peak_learning_rate, scale_ratio

VOXCELEB = {"steps_per_epoch": 4265, "num_epochs": 150}  # 2 processes x 128


@pytest.mark.parametrize(
    ("epoch", "expected"), [(4, 0.172), (7, 0.295), (20, 0.153), (40, 0.055), (75, 0.0094), (151, 2e-4)]
)
def test_learning_rate_is_wespeakers(epoch, expected):
    """Values of WeSpeaker's scheduler for 2 x 128 utterances a step; ``epoch`` at its start."""
    rate = learning_rate((epoch - 1) * 4265, ExponentialDecreaseArgs(), scale=4, **VOXCELEB)
    assert rate == pytest.approx(expected, rel=0.03)


def test_learning_rate_at_the_ends():
    assert learning_rate(0, ExponentialDecreaseArgs(), scale=4, **VOXCELEB) == 0.0
    assert learning_rate(0, ExponentialDecreaseArgs(warm_from_zero=False), scale=4, **VOXCELEB) == pytest.approx(0.1)
    assert learning_rate(150 * 4265, ExponentialDecreaseArgs(), scale=1, **VOXCELEB) == pytest.approx(5e-5)


def test_the_paper_s_face_recipe_falls_twice():
    """20 epochs: 0.1 for 7, 0.01 for 6, 0.001 for 7."""
    args = StepDecreaseArgs(initial_lr=0.1, milestones=[7, 13])
    rates = [learning_rate(10 * epoch + 5, args, steps_per_epoch=10, num_epochs=20, scale=1.0) for epoch in range(20)]
    assert rates == pytest.approx([0.1] * 7 + [0.01] * 6 + [0.001] * 7)


def test_falls_and_the_warm_up_go_together():
    args = StepDecreaseArgs(initial_lr=0.2, milestones=[2, 3], gamma=0.5, warm_up_epoch=4)
    rates = [learning_rate(step, args, steps_per_epoch=4, num_epochs=6, scale=2.0) for step in range(24)]
    assert rates[:9] == pytest.approx([0.025 * step for step in range(8)] + [0.1])
    assert rates[16:] == pytest.approx([0.1] * 8)
    assert peak_learning_rate(args, steps_per_epoch=4, num_epochs=6, scale=2.0) == max(rates) == rates[7]


def test_scale_ratio_is_world_times_batch_over_64_or_the_number():
    assert scale_ratio(ExponentialDecreaseArgs(), world_size=4, batch_size=128) == 8
    assert scale_ratio(ExponentialDecreaseArgs(scale_ratio=1.0), world_size=4, batch_size=128) == 1
    assert peak_learning_rate(ExponentialDecreaseArgs(), scale=16, **VOXCELEB) == pytest.approx(1.18, abs=0.01)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(1, 0), (20, 0), (20.5, 0.032), (21, 0.058), (22, 0.100), (25, 0.164), (30, 0.194), (40, 0.2)],
)
def test_margin_is_wespeakers(epoch, expected):
    args = MarginUpdate(final_margin=0.2, increase_start_epoch=20, fix_start_epoch=40)
    assert margin((epoch - 1) * 4265, args, steps_per_epoch=4265) == pytest.approx(expected, abs=5e-4)


def test_margin_linear_and_fixed():
    args = MarginUpdate(final_margin=0.2, increase_start_epoch=20, fix_start_epoch=40, increase_type="linear")
    assert margin(29 * 10, args, steps_per_epoch=10) == pytest.approx(0.1)
    fixed = MarginUpdate(initial_margin=0.05, update_margin=False)
    assert margin(10**9, fixed, steps_per_epoch=10) == 0.05


def test_margin_never_falls():
    args = MarginUpdate(final_margin=0.2, increase_start_epoch=2, fix_start_epoch=5)
    values = [margin(step, args, steps_per_epoch=100) for step in range(600)]
    assert values == sorted(values)
    assert math.isclose(values[-1], 0.2)
