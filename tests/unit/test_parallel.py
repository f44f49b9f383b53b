import os
import signal
from itertools import count

import pytest

from wespeaker.errors import InputError
from wespeaker.parallel import map_in_processes


def square_or_fail(number):
    if number == 5:
        raise InputError("5 is a bad number")
    return number**2


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(num_jobs):
    """The items never end, so taking them all at once would not either."""
    taken = count()
    results = map_in_processes(square_or_fail, taken, num_jobs=num_jobs)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(InputError, match="5 is a bad number"):
        next(results)
    assert next(taken) <= 5 + 2 * num_jobs


def test_a_killed_process_is_a_sentence():
    with pytest.raises(InputError, match=r"one of the processes was killed.* try fewer with --nj"):
        list(map_in_processes(die, [1, 2], num_jobs=2))
