"""Start a tool in several processes, here and on other nodes: torchrun and its options, its errors as sentences.

The exit code is that of the first process that failed, or 128 and the number of the signal that ended it.
"""

import logging
import os
import sys

from _cli import run

from wespeaker.errors import InputError


def main() -> None:
    """Call torchrun with the options as they are, and wait for the processes."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of torch, here and in the processes, before its import
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError

    # Warnings of torchrun: OMP_NUM_THREADS, processes that it ends, a node that closed its connection first at the end.
    logging.disable(logging.WARNING)
    try:
        torchrun.main(sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        end = failure.signal_name() if failure.exitcode < 0 else f"code {failure.exitcode}"
        print(
            f"launch.py: error: rank {rank} of {error.name} ended with {end}; the lines above, or those of another "
            f"node, say why; the same command on all nodes goes on from here",
            file=sys.stderr,
        )
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode) from None
    except RendezvousTimeoutError:
        raise InputError(
            "not all nodes came within join_timeout; start the same command on each, or give more seconds"
        ) from None
    except RendezvousError:
        raise InputError(
            "the node at the address where all meet (host:port) cannot be reached, or has ended; look at its output"
        ) from None
    except SignalException as error:
        print(f"launch.py: ended by {error.sigval.name}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + error.sigval) from None


run(main)
