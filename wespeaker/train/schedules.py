"""Learning rate and margin as pure functions of the step, so that a resumed run cannot get them wrong.

Steps count from 0, epochs in the config from 1; the exponential formulas are WeSpeaker's.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from wespeaker.config import ExponentialDecreaseArgs, MarginUpdate, StepDecreaseArgs

SchedulerArgs = ExponentialDecreaseArgs | StepDecreaseArgs

# The exponential margin has covered 1 - 1e-3 of its way at the end of the ramp.
RAMP_LOG = math.log(1e-3 / (1 + 1e-6))


def scale_ratio(args: SchedulerArgs, *, world_size: int, batch_size: int) -> float:
    """Return the factor on all learning rates: the config's number, or world size x batch size / 64."""
    return world_size * batch_size / 64 if args.scale_ratio == "auto" else float(args.scale_ratio)


def learning_rate(step: float, args: SchedulerArgs, *, steps_per_epoch: int, num_epochs: int, scale: float) -> float:
    """Return the rate of a step: what the schedule has left of the initial rate, times a linear warm-up to ``scale``.

    >>> args = ExponentialDecreaseArgs(initial_lr=0.1, final_lr=5e-5, warm_up_epoch=6)
    >>> round(learning_rate(6 * 4265, args, steps_per_epoch=4265, num_epochs=150, scale=4), 3)
    0.295
    >>> args = StepDecreaseArgs(initial_lr=0.1, milestones=[7, 13])
    >>> [round(learning_rate(e * 100, args, steps_per_epoch=100, num_epochs=20, scale=1), 4) for e in (6.99, 7, 13)]
    [0.1, 0.01, 0.001]
    """
    warm_up = args.warm_up_epoch * steps_per_epoch
    factor = scale
    if step < warm_up:
        start = 0.0 if args.warm_from_zero else 1.0
        factor = start + (scale - start) * step / warm_up
    if isinstance(args, StepDecreaseArgs):
        return factor * args.initial_lr * args.gamma ** bisect_right(args.milestones, step / steps_per_epoch)
    decay = math.log(args.final_lr / args.initial_lr) * step / (steps_per_epoch * num_epochs)
    return factor * args.initial_lr * math.exp(decay)


def peak_learning_rate(args: SchedulerArgs, *, steps_per_epoch: int, num_epochs: int, scale: float) -> float:
    """Return the highest rate of the run: at its start, at the end of the warm-up, or where a fall cuts into that."""
    falls = args.milestones if isinstance(args, StepDecreaseArgs) else []
    steps = [0.0, args.warm_up_epoch * steps_per_epoch, *(epoch * steps_per_epoch - 1 for epoch in falls)]
    return max(
        learning_rate(step, args, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs, scale=scale) for step in steps
    )


def margin(step: float, args: MarginUpdate, *, steps_per_epoch: int) -> float:
    """Return the margin of a step: initial, then an exponential or linear ramp between two epochs, then final.

    >>> args = MarginUpdate(final_margin=0.2, increase_start_epoch=20, fix_start_epoch=40)
    >>> [round(margin((epoch - 1) * 100, args, steps_per_epoch=100), 3) for epoch in (20, 21, 25, 40)]
    [0.0, 0.058, 0.164, 0.2]
    """
    if not args.update_margin:
        return args.initial_margin
    start = (args.increase_start_epoch - 1) * steps_per_epoch
    end = (args.fix_start_epoch - 1) * steps_per_epoch
    if step >= end:
        return args.final_margin
    if step < start:
        return args.initial_margin
    share = (step - start) / (end - start)
    ramp = 1.0 - math.exp(share * RAMP_LOG) if args.increase_type == "exp" else share
    return args.initial_margin + (args.final_margin - args.initial_margin) * ramp
