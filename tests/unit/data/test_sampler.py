import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError


@settings(deadline=None, max_examples=50, derandomize=True)
@given(num_utts=st.integers(6, 60), batch_size=st.integers(1, 3), world_size=st.integers(1, 2), seed=st.integers(0, 5))
def test_each_utterance_at_most_once_an_epoch_over_all_ranks(num_utts, batch_size, world_size, seed):
    samplers = [
        RunSampler(num_utts, batch_size=batch_size, num_epochs=3, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    items = [item for sampler in samplers for batch in sampler for item in batch]
    assert len(items) == len(set(items)) == 3 * samplers[0].steps_per_epoch * batch_size * world_size
    assert {epoch for epoch, _ in items} == {1, 2, 3}
    assert num_utts - len(items) // 3 < batch_size * world_size


def test_two_ranks_see_what_one_sees():
    """A step of two processes with half the batch holds the utterances of the step of one."""
    one = list(RunSampler(50, batch_size=8, num_epochs=2, seed=1))
    two = [list(RunSampler(50, batch_size=4, num_epochs=2, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert one == [a + b for a, b in zip(*two, strict=True)]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 11])
def test_starting_in_the_middle_gives_the_rest(start):
    whole = list(RunSampler(50, batch_size=8, num_epochs=2, seed=1))
    sampler = RunSampler(50, batch_size=8, num_epochs=2, seed=1, start_step=start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole) - start


def test_epochs_and_seeds_differ():
    first, second = list(RunSampler(50, batch_size=50, num_epochs=2, seed=1))
    assert [i for _, i in first] != [i for _, i in second]
    assert first != next(iter(RunSampler(50, batch_size=50, num_epochs=1, seed=2)))


def test_too_few_utterances_is_a_sentence():
    """WeSpeaker divides by zero in a worker process."""
    with pytest.raises(InputError, match=r"3 training utterances are fewer than one step takes .*batch_size 4 x 2"):
        RunSampler(3, batch_size=4, num_epochs=1, seed=0, world_size=2)
