"""Numbers that are not finite: found in their step, named with the examples that they come from, never saved."""

import math

import pytest
import torch
from toy_task import DIM, ToySet, rows, run_ranks, toy_task, train_toy, weights

from wespeaker.errors import InputError
from wespeaker.train import finite, learner
from wespeaker.train.resume import saved_steps

STEP = 6  # of those that are damaged, the second of epoch 2
TWO = {"dataloader_args": {"batch_size": 3, "num_workers": 0}}


class PoisonedSet(ToySet):
    """One example of epoch 2 is not finite."""

    def __init__(self, index, value):
        super().__init__()
        self.index, self.value = index, value

    def __getitem__(self, item):
        x, *rest = super().__getitem__(item)
        return (torch.full((DIM,), self.value) if item == (2, self.index) else x, *rest)


def dump(folder, step, rank=0):
    return torch.load(folder / f"nonfinite_step{step}_rank{rank}.pt", weights_only=True)


def assert_nothing_was_saved_after_epoch_1(folder):
    assert saved_steps(folder / "models" / "checkpoint") == [4]
    assert [row["step"] for row in rows(folder)][:4] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in rows(folder))


def damage(monkeypatch, hook, step=STEP, last=None):
    """Call ``hook(learner)``, which returns a handle or None, around the steps from ``step`` to ``last``."""
    real, taken = learner.Learner.take_step, []

    def damaged(self, *args, **kwargs):
        taken.append(None)
        handle = hook(self) if step <= len(taken) <= (last or step) else None
        try:
            return real(self, *args, **kwargs)
        finally:
            if handle is not None:
                handle.remove()

    monkeypatch.setattr(learner.Learner, "take_step", damaged)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_example_that_is_not_finite_is_named_and_the_run_goes_on_when_it_is_mended(tmp_path, value):
    with pytest.raises(InputError) as raised:
        train_toy(tmp_path / "run", task=toy_task(dataset=PoisonedSet(7, value)))
    step = int(next((tmp_path / "run").glob("nonfinite*")).name.removeprefix("nonfinite_step").split("_")[0])
    assert 5 <= step <= 8
    told = str(raised.value)
    assert told.startswith(f"step {step} (epoch {step / 4:.2f}, learning rate ")
    assert ", margin 0.1), rank 0: the input of x7 is not finite; the last finite figures are loss " in told
    assert f"in step {step - 1}; no checkpoint was written since, " in told
    assert told.endswith("rank0.pt holds the step; mend or remove it")
    assert_nothing_was_saved_after_epoch_1(tmp_path / "run")

    content = dump(tmp_path / "run", step)
    assert (content["stage"], content["step"], content["rank"], content["margin"]) == ("input", step, 0, 0.1)
    place = content["keys"].index("x7")
    assert not content["inputs"][0].isfinite().all(1)[place]
    assert content["inputs"][0].isfinite().all(1).sum() == content["embeddings"].isfinite().all(1).sum() == 5
    assert content["labels"][place] == 7
    assert torch.isfinite(content["per_sample"]).sum() == 5
    assert not all(math.isfinite(norm) for norm in content["gradient_norms"].values())
    assert {"0.weight", "2.bias", "projection.weight"} <= content["gradient_norms"].keys()
    last = rows(tmp_path / "run")[step - 2]
    assert (content["last_finite"]["step"], content["last_finite"]["loss"]) == (step - 1, pytest.approx(last["loss"]))

    train_toy(tmp_path / "run")  # the same command on mended data
    train_toy(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(tmp_path / "run")[name])


def test_an_embedding_that_overflows_is_named(tmp_path, monkeypatch):
    def overflow(learner):
        return learner.network.register_forward_hook(lambda m, i, out: out.index_fill(0, torch.tensor([2]), math.inf))

    damage(monkeypatch, overflow)
    with pytest.raises(InputError, match=r"the embedding of x\d+ is not finite, though all inputs are; .* step 5;"):
        train_toy(tmp_path / "run", log_batch_interval=100)
    content = dump(tmp_path / "run", STEP)
    assert content["embeddings"].isfinite().all(1).tolist() == [True, True, False, True, True, True]
    assert_nothing_was_saved_after_epoch_1_without_rows(tmp_path / "run")


def assert_nothing_was_saved_after_epoch_1_without_rows(folder):
    assert saved_steps(folder / "models" / "checkpoint") == [4]
    assert [row["step"] for row in rows(folder)] == [4]


@pytest.mark.parametrize("project_type", ["q_margin", "arc_margin", "softmax"])
def test_a_prototype_that_is_not_finite_makes_losses_that_are_named(tmp_path, monkeypatch, project_type):
    def infinite(learner):
        learner.head.weight.data[4] = math.inf

    damage(monkeypatch, infinite)
    with pytest.raises(InputError, match=r"step 6 .* the loss of x\d+, x\d+, x\d+.* is not finite, though all embedd"):
        train_toy(tmp_path / "run", projection_args={"project_type": project_type})
    assert dump(tmp_path / "run", STEP)["stage"] == "loss"


@pytest.mark.parametrize("clip_grad_norm", [0.0, 5.0])
def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(tmp_path, monkeypatch, clip_grad_norm):
    """The second layer's: all that the backward pass comes to later is damaged too, the head is not."""

    def infinite(learner):
        return learner.network[2].weight.register_hook(lambda grad: grad * math.inf)

    damage(monkeypatch, infinite)
    expected = r"step 6 .*the gradient of 2\.weight .* is not finite, though all losses are; the batch is x\d+, x\d+"
    with pytest.raises(InputError, match=expected):
        train_toy(tmp_path / "run", clip_grad_norm=clip_grad_norm)
    norms = dump(tmp_path / "run", STEP)["gradient_norms"]
    assert [name for name, norm in norms.items() if not math.isfinite(norm)] == ["2.weight"]
    assert_nothing_was_saved_after_epoch_1(tmp_path / "run")


def test_an_update_that_overflows_is_not_saved(tmp_path, monkeypatch):
    real = learner.Learner.take_step

    def overflowing(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        self.network[0].weight.data[0, 0] = math.inf
        return out

    monkeypatch.setattr(learner.Learner, "take_step", overflowing)
    with pytest.raises(InputError, match=r"step 1 .*: the update made 0\.weight not finite; the last finite .* step 1"):
        train_toy(tmp_path / "run", dataloader_args={"batch_size": 24, "num_workers": 0})
    assert dump(tmp_path / "run", 1)["stage"] == "weight"
    assert saved_steps(tmp_path / "run" / "models" / "checkpoint") == []


@pytest.mark.parametrize("later", [False, True])
def test_both_ranks_end_at_the_step_in_which_one_has_the_example(tmp_path, later):
    """Where the figures of a GPU come later, they are those of the step all the same."""

    def go(ranks):
        if later and ranks.rank == 1:
            finite._Copy.is_there = lambda self: False
        with pytest.raises(InputError) as raised:
            train_toy(
                tmp_path / "run", ranks=ranks, task=toy_task(dataset=PoisonedSet(7, math.nan)), log_batch_interval=100,
                save_epoch_interval=1, num_epochs=5, **TWO,
            )  # fmt: skip
        (tmp_path / f"told{ranks.rank}").write_text(str(raised.value))

    run_ranks(2, tmp_path, go)
    told = (tmp_path / "told0").read_text()
    assert told == (tmp_path / "told1").read_text()
    (path,) = (tmp_path / "run").glob("nonfinite*")
    assert path.name in told
    rank = int(path.stem[-1])
    content = torch.load(path, weights_only=True)
    assert f"step {content['step']} (epoch " in told
    assert f"rank {rank}: the input of x7 is not finite" in told
    assert content["rank"] == rank
    assert len(content["keys"]) == 3
    assert "x7" in content["keys"]
    assert_nothing_was_saved_after_epoch_1_without_rows(tmp_path / "run")


def test_figures_that_come_late_are_waited_for_before_anything_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(finite._Copy, "is_there", lambda self: False)
    damage(monkeypatch, lambda learner: learner.head.weight.register_hook(lambda grad: grad * math.nan), step=4)
    with pytest.raises(InputError, match=r"step 4 .*the gradient of projection\.weight"):
        train_toy(tmp_path / "run", log_batch_interval=100)
    assert saved_steps(tmp_path / "run" / "models" / "checkpoint") == []


def test_they_are_looked_at_two_steps_later_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(finite._Copy, "is_there", lambda self: False)
    taken = []
    damage(monkeypatch, lambda learner: taken.append(None), step=1, last=100)
    with pytest.raises(InputError, match=r"of x7 is not finite"):
        train_toy(tmp_path / "run", task=toy_task(dataset=PoisonedSet(7, math.nan)), log_batch_interval=100)
    (path,) = (tmp_path / "run").glob("nonfinite*")
    step = torch.load(path, weights_only=True)["step"]
    assert len(taken) == min(step + finite.LATEST, 8)  # the epoch ends after 8


def test_fp16_may_skip_steps_until_its_scale_is_beyond_reason(tmp_path, monkeypatch):
    def infinite(learner):
        return learner.network[2].weight.register_hook(lambda grad: grad * math.inf)

    damage(monkeypatch, infinite, step=1, last=26)
    train_toy(tmp_path / "some", precision="fp16", num_epochs=7)
    assert min(row["grad_scale"] for row in rows(tmp_path / "some")) == finite.SMALLEST_SCALE
    damage(monkeypatch, infinite, step=1, last=27)
    with pytest.raises(InputError, match=r"step 27 .*2\.weight .* not finite at a loss scale of 0\.000976562, though"):
        train_toy(tmp_path / "all", precision="fp16", num_epochs=7)


def test_a_dump_that_cannot_be_written_does_not_hide_the_reason(tmp_path, monkeypatch, caplog):
    def full(content, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finite.checkpoint, "save", full)
    with pytest.raises(InputError, match=r"the input of x7 is not finite"):
        train_toy(tmp_path / "run", task=toy_task(dataset=PoisonedSet(7, math.nan)))
    assert "cannot be written: [Errno 28] No space left on device" in caplog.text
