import os
import signal
import threading

from toy_task import run_ranks

from wespeaker.train.distributed import Ranks
from wespeaker.train.preemption import SIGNALS, Agreement, noted_signals


def test_signals_are_noted_and_the_handlers_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with noted_signals() as noted:
        assert noted == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert noted == ["SIGTERM", "SIGUSR1"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_thread_has_no_signals():
    def work():
        with noted_signals() as noted:
            found.append(list(noted))

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


def test_what_one_rank_wants_all_do(tmp_path):
    assert Agreement(Ranks(0, 1, None)).any(True, False) == [True, False]

    def go(ranks):
        agreement = Agreement(ranks)
        assert agreement.any(ranks.rank == 2, False, True) == [True, False, True]
        assert agreement.any(False, ranks.rank == 0, False) == [False, True, False]

    run_ranks(3, tmp_path, go)
