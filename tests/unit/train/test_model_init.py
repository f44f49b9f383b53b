"""Runs that start from the weights of another: with its prototypes or with new ones, strictly."""

import shutil
from pathlib import Path

import pytest
import torch
from toy_task import NUM_CLASSES, run_ranks, toy_config, toy_task, train_toy, weights

from wespeaker.errors import InputError
from wespeaker.losses import PROJECT_TYPES, build_head
from wespeaker.ranks import ALONE
from wespeaker.train.checkpoint import model_path
from wespeaker.train.learner import Learner

SUB_CENTERS = {"project_type": "arc_margin_intertopk_subcenter", "K": 2}


def started(folder, *, head_init="keep", ranks=ALONE, task=None, path=None, **changed):
    """A learner that was given the weights of a run's last epoch."""
    task = task or toy_task()
    learner = Learner(toy_config(folder, **changed), task, ranks)
    learner.start_from(path or model_path(folder / "models", 3), head_init=head_init, facts=task.facts)
    return learner


@pytest.mark.parametrize("projection_args", [{"project_type": "q_margin"}, SUB_CENTERS], ids=["q_margin", "subcenter"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_head_is_kept_by_any_number_of_processes(tmp_path, projection_args, world_size):
    saved = weights(train_toy(tmp_path / "first", projection_args=projection_args))["projection.weight"]

    def check(ranks):
        learner = started(tmp_path / "first", ranks=ranks, projection_args=projection_args)
        rows = len(saved) // NUM_CLASSES
        assert torch.equal(learner.head.weight, saved[learner.shards.first * rows : learner.shards.last * rows])

    run_ranks(world_size, tmp_path, check)


def test_a_new_head_starts_as_in_any_run(tmp_path):
    folder = train_toy(tmp_path / "first")
    fresh = Learner(toy_config(folder), toy_task(), ALONE)
    learner = started(folder, head_init="reinit")
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
    with pytest.raises(InputError, match=r"holds 11 prototypes, expected 12 of 12 classes; give head_init=reinit"):
        started(folder, task=task)
    assert len(started(folder, task=task, head_init="reinit").head.weight) == NUM_CLASSES + 1


# The prototypes at speed 1 of a run in which each speed of a speaker was a class

SPEEDS = 3


def perturbed_task():
    return toy_task(num_classes=SPEEDS * NUM_CLASSES)


@pytest.mark.parametrize("name", PROJECT_TYPES)
def test_every_head_says_which_of_its_tensors_count_classes(name):
    """What 3 C classes have three times as much of, and nothing else."""
    heads = [build_head({"project_type": name}, embed_dim=4, num_classes=classes) for classes in (5, 15)]
    few, many = (head.state_dict() for head in heads)
    growing = {key for key in few if few[key].shape != many[key].shape}
    assert growing == heads[0].sharded_names | heads[0].per_class_names
    assert all(many[key].shape == (3 * len(few[key]), *few[key].shape[1:]) for key in growing)


@pytest.mark.parametrize(
    "projection_args",
    [{"project_type": "q_margin"}, SUB_CENTERS, {"project_type": "kappa"}, {"project_type": "a3m", "reinit_epoch": 3}],
    ids=lambda args: args["project_type"],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_speed_classes_are_left_out_by_any_number_of_processes(tmp_path, projection_args, world_size):
    folder = train_toy(tmp_path / "first", task=perturbed_task(), projection_args=projection_args)
    saved = {key.removeprefix("projection."): value for key, value in weights(folder).items() if "projection." in key}
    rows = len(saved["weight"]) // (SPEEDS * NUM_CLASSES)

    def check(ranks):
        learner = started(folder, head_init="unperturbed", ranks=ranks, projection_args=projection_args)
        head, classes = learner.head, slice(learner.shards.first, learner.shards.last)
        own = head.state_dict()
        assert own.keys() == saved.keys()
        for name in own.keys() - {"weight"}:
            part = {name in head.sharded_names: classes, name in head.per_class_names: slice(0, NUM_CLASSES)}.get(True)
            assert torch.equal(own[name], saved[name] if part is None else saved[name][part])
        first, last = rows * classes.start, rows * classes.stop
        assert torch.equal(head.weight, saved["weight"][first:last])

    run_ranks(world_size, tmp_path, check)


def test_without_speed_classes_there_is_nothing_to_leave_out(tmp_path):
    folder = train_toy(tmp_path / "first")
    assert torch.equal(started(folder, head_init="unperturbed").head.weight, weights(folder)["projection.weight"])


def test_another_number_of_classes_is_a_sentence(tmp_path):
    folder = train_toy(tmp_path / "first", task=perturbed_task())
    with pytest.raises(InputError, match=r"33 prototypes, expected 11 of 11 classes; give head_init=unperturbed to le"):
        started(folder)
    wanted = r"holds 33 prototypes, expected 12 of 12 classes or 36 of 36 with speed classes; give head_init=re"
    with pytest.raises(InputError, match=wanted):
        started(folder, task=toy_task(num_classes=12), head_init="unperturbed")


def test_sub_centres_are_not_taken_for_speed_classes(tmp_path):
    """Three prototypes of a class make the same number of rows as three speeds."""
    three = {"project_type": "arc_margin_intertopk_subcenter", "K": 3}
    facts = {**toy_task().facts, "classes": NUM_CLASSES}
    folder = train_toy(tmp_path / "first", projection_args=three, task=toy_task(facts=facts))
    with pytest.raises(InputError, match="holds 33 prototypes of 11 classes, expected 11 of 11 classes or 33 of 33"):
        started(folder, task=toy_task(facts=facts), head_init="unperturbed", projection_args={**three, "K": 1})


def test_classes_of_other_names_are_refused_where_the_run_tells_them(tmp_path, caplog):
    folder = train_toy(tmp_path / "first")
    names = toy_task().facts["names"]
    task = toy_task(facts={"examples": 7, "names": [*names[:-1], "eve"]})
    for head_init in ("keep", "unperturbed"):
        with pytest.raises(InputError, match=r"on other classes: names that are no longer there: c10; names .*: eve; "):
            started(folder, task=task, head_init=head_init)
    with pytest.raises(InputError, match="names in another order"):
        started(folder, task=toy_task(facts={"names": names[::-1]}))
    started(folder, task=task, head_init="reinit")
    alone = shutil.copy(model_path(folder / "models", 3), tmp_path / "model_3.pt")
    with caplog.at_level("INFO"):
        started(folder, task=task, path=Path(alone))
    assert "lies in no run folder: its classes are taken for those of the data" in caplog.text


def test_what_becomes_of_a_head_that_is_not_given_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"head_init: unperturbed is about .* give model_init=exp/<name>"):
        train_toy(tmp_path / "run", head_init="unperturbed")
    assert not (tmp_path / "run").exists()


def test_a_file_without_the_head_and_one_of_another_network(tmp_path):
    folder = train_toy(tmp_path / "first")
    path = model_path(folder / "models", 3)
    content = weights(folder)
    torch.save({name: value for name, value in content.items() if not name.startswith("projection.")}, path)
    with pytest.raises(InputError, match="does not hold the head"):
        started(folder)
    started(folder, head_init="reinit")
    torch.save({**content, "more": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="the weights do not fit the network"):
        started(folder, head_init="reinit")
