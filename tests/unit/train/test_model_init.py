"""Runs that start from the weights of another: with its prototypes or with new ones, strictly."""

import pytest
import torch
from toy_task import NUM_CLASSES, run_ranks, toy_config, toy_task, train_toy, weights

from wespeaker.errors import InputError
from wespeaker.ranks import ALONE
from wespeaker.train.checkpoint import model_path
from wespeaker.train.learner import Learner

SUB_CENTERS = {"project_type": "arc_margin_intertopk_subcenter", "K": 2}


def started(folder, *, keep_head=True, ranks=ALONE, task=None, **changed):
    """A learner that was given the weights of a run's last epoch."""
    learner = Learner(toy_config(folder, **changed), task or toy_task(), ranks)
    learner.start_from(model_path(folder / "models", 3), keep_head=keep_head)
    return learner


@pytest.mark.parametrize("projection_args", [{"project_type": "q_margin"}, SUB_CENTERS], ids=["q_margin", "subcenter"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_head_is_kept_by_any_number_of_processes(tmp_path, projection_args, world_size):
    saved = weights(train_toy(tmp_path / "first", projection_args=projection_args))["projection.weight"]

    def check(ranks):
        learner = started(tmp_path / "first", ranks=ranks, projection_args=projection_args)
        rows = len(saved) // NUM_CLASSES
        assert torch.equal(learner.head.weight, saved[learner.shards.first * rows : learner.shards.last * rows])

    if world_size == 1:
        check(ALONE)
    else:
        run_ranks(world_size, tmp_path, check)


def test_a_new_head_starts_as_in_any_run(tmp_path):
    folder = train_toy(tmp_path / "first")
    fresh = Learner(toy_config(folder), toy_task(), ALONE)
    learner = started(folder, keep_head=False)
    assert torch.equal(learner.head.weight, fresh.head.weight)
    for name, value in learner.backbone.state_dict().items():
        assert torch.equal(value, weights(folder)[name])


def test_a_run_of_the_config_starts_from_it_once(tmp_path):
    """The first step is of those weights; a run that goes on is of its own."""
    first = train_toy(tmp_path / "first")
    given = {"model_init": str(model_path(first / "models", 3)), "num_epochs": 1}
    still = {"initial_lr": 1e-9, "final_lr": 1e-9, "warm_up_epoch": 0, "scale_ratio": 1.0}
    second = train_toy(tmp_path / "second", **given, scheduler_args=still)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second, 1)[name], value, rtol=1e-5, atol=1e-6)
    model_path(first / "models", 3).unlink()
    train_toy(tmp_path / "second", **given, scheduler_args=still)  # complete: the file is not looked for


def test_other_classes_need_another_head(tmp_path):
    folder = train_toy(tmp_path / "first")
    task = toy_task(num_classes=NUM_CLASSES + 1)
    with pytest.raises(InputError, match=r"does not hold the head of the config: weight .* head_init=reinit"):
        started(folder, task=task)
    assert len(started(folder, task=task, keep_head=False).head.weight) == NUM_CLASSES + 1


def test_a_file_without_the_head_and_one_of_another_network(tmp_path):
    folder = train_toy(tmp_path / "first")
    path = model_path(folder / "models", 3)
    content = weights(folder)
    torch.save({name: value for name, value in content.items() if not name.startswith("projection.")}, path)
    with pytest.raises(InputError, match="does not hold the head"):
        started(folder)
    started(folder, keep_head=False)
    torch.save({**content, "more": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="the weights do not fit the network"):
        started(folder, keep_head=False)
