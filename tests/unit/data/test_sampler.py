from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError


def samplers(num_utts, *, world_size, **args):
    return [RunSampler(num_utts, rank=rank, world_size=world_size, **args) for rank in range(world_size)]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    num_utts=st.integers(16, 80),
    batch_size=st.integers(2, 4),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 5),
    drop_last=st.booleans(),
)
def test_each_utterance_once_an_epoch_over_all_ranks(num_utts, batch_size, world_size, seed, drop_last):
    ranks = samplers(
        num_utts, batch_size=batch_size, num_epochs=3, seed=seed, world_size=world_size, drop_last=drop_last
    )
    batches = [list(sampler) for sampler in ranks]
    steps = ranks[0].steps_per_epoch
    assert {len(of_rank) for of_rank in batches} == {3 * steps}
    seen = Counter(item for of_rank in batches for batch in of_rank for item in batch)
    assert set(seen.values()) == {1}
    whole = batch_size * world_size
    assert len(seen) == 3 * (num_utts // whole * whole if drop_last else num_utts)
    for step, parts in enumerate(zip(*batches, strict=True)):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert batch_size // 2 <= min(sizes) <= max(sizes) <= batch_size
        assert sum(sizes) == ranks[0].step_size(step)
        assert sum(sizes) == whole or step % steps >= steps - 2
        assert [sampler.share(step) for sampler in ranks] == [n * world_size / sum(sizes) for n in sizes]


@pytest.mark.parametrize(
    ("num_utts", "sizes"), [(32, [8] * 4), (33, [8, 8, 8, 5, 4]), (39, [8, 8, 8, 8, 7]), (9, [5, 4])]
)
def test_the_last_two_steps_share_what_is_left(num_utts, sizes):
    sampler = RunSampler(num_utts, batch_size=8, num_epochs=1, seed=1)
    assert [len(batch) for batch in sampler] == sizes
    kept = [len(batch) for batch in RunSampler(num_utts, batch_size=8, num_epochs=1, seed=1, drop_last=True)]
    assert kept == [8] * (num_utts // 8)


@pytest.mark.parametrize("num_utts", [48, 50])
def test_two_ranks_see_what_one_sees(num_utts):
    """A step of two processes with half the batch holds the utterances of the step of one."""
    one = list(RunSampler(num_utts, batch_size=8, num_epochs=2, seed=1))
    two = samplers(num_utts, batch_size=4, num_epochs=2, seed=1, world_size=2)
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


def test_a_rank_without_an_utterance_is_a_sentence():
    with pytest.raises(InputError, match=r"9 training utterances cannot be dealt to 4 processes one at a time"):
        RunSampler(9, batch_size=1, num_epochs=1, seed=0, world_size=4)
    assert len(RunSampler(9, batch_size=1, num_epochs=1, seed=0, world_size=4, drop_last=True)) == 2
