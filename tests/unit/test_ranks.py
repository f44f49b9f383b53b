"""Work that is dealt out to processes."""

from hypothesis import given
from hypothesis import strategies as st

from wespeaker.ranks import shares


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 9))
def test_every_piece_has_one_owner_and_loads_differ_by_a_piece_at_most(costs, world_size):
    owners = shares(costs, world_size)
    assert len(owners) == len(costs)
    loads = [
        sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(world_size)
    ]
    assert sum(loads) == sum(costs)
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_many_equal_pieces_are_dealt_evenly():
    owners = shares([2.0] * 12, 4)
    assert sorted(owners) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
