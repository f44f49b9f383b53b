"""What the command-line tools here share: the package on the path, and options that several of them have."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python tools/x.py` works without installing the package

from wespeaker.command_line import Parser  # noqa: E402
from wespeaker.command_line import run as run  # noqa: E402 (the tools take it from here)
from wespeaker.errors import InputError  # noqa: E402

if TYPE_CHECKING:
    from wespeaker.config import AnyConfig, TrainConfig
    from wespeaker.data.corpora import Corpora
    from wespeaker.eval.score_norm import Cohort
    from wespeaker.eval.scoring import Evaluation
    from wespeaker.train.task import Task

CORPORA = {
    "voxceleb1": "folder of VoxCeleb1 with its trial lists (veri_test2.txt and so on)",
    "voxceleb2": "folder of VoxCeleb2 (dev, and test if there is one)",
    "musan": "folder of MUSAN",
    "rirs": "folder of RIRS_NOISES",
}


def add_corpora(parser: Parser) -> None:
    """Add the options that name the folders of the corpora."""
    for name, text in CORPORA.items():
        parser.add_argument(f"--{name}", type=Path, help=text)


def to_corpora(args: argparse.Namespace) -> Corpora:
    """Return what those options gave."""
    from wespeaker.data.corpora import Corpora  # here, since it imports torch, which takes seconds

    return Corpora(**{name: getattr(args, name) for name in CORPORA})


def add_training(parser: Parser, *, configs: str) -> None:
    """Add the options of every training: which config, what to change in it, and where to run."""
    parser.add_argument("--config", required=True, help=f"a file of {configs}")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the config")
    parser.add_argument("--exp_dir", help="run folder, instead of the config's exp_dir")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument("--timeout", type=float, default=30, help="minutes that processes wait for each other at most")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Return the changes to the config that those options ask for."""
    return [*args.set, *([f"exp_dir={args.exp_dir}"] if args.exp_dir else [])]


def to_config(args: argparse.Namespace, schema: type[AnyConfig]) -> AnyConfig:
    """Return the config that those options gave."""
    from wespeaker.config import load_config

    return load_config(args.config, overrides_of(args), schema=schema)


def train_task(config: TrainConfig, task: Callable[[], Task], args: argparse.Namespace) -> None:
    """Train with the processes that torchrun started, or one; exit with `EXIT_PREEMPTED` when told to stop."""
    from wespeaker.ranks import joined_ranks
    from wespeaker.train.preemption import EXIT_PREEMPTED, Preempted
    from wespeaker.train.trainer import train

    preempted = False
    with joined_ranks(args.device, timeout=timedelta(minutes=args.timeout)) as ranks:
        if not ranks.first:  # each rank has a log file; the terminal is the first's, but for warnings
            for handler in logging.getLogger().handlers:
                handler.setLevel(logging.WARNING)
        try:
            train(config, task(), ranks=ranks)
        except Preempted:  # the log has said so; it is no failure, which would end the other processes
            preempted = True
    if preempted:
        raise SystemExit(EXIT_PREEMPTED)


def add_cohort(parser: Parser) -> None:
    """Add the options of score normalisation: a cohort of speakers, and how scores are compared with it."""
    from wespeaker.eval.score_norm import DEFAULT_TOP_N, METHODS

    parser.add_argument(
        "--cohort", metavar="SCP", help="xvector.scp of the training set, whose speakers are the cohort"
    )
    parser.add_argument("--cohort_utt2spk", metavar="FILE", help="'utt spk' lines of the training set")
    parser.add_argument("--mean_vec", metavar="NPY", help="mean of the training embeddings, as in tools/score.py")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="nearest speakers, or all of them")
    parser.add_argument("--top_n", type=int, default=DEFAULT_TOP_N, help="how many nearest speakers (asnorm)")


def to_cohort(args: argparse.Namespace) -> tuple[Cohort, int | None, str]:
    """Return what those options gave: the cohort, its top_n (None for all), and what such scores are called."""
    from wespeaker.eval.score_norm import load_cohort, score_kind

    if args.cohort is None or args.cohort_utt2spk is None:
        raise InputError("give --cohort and --cohort_utt2spk, the embeddings and the speakers of the training set")
    kind = score_kind(args.method, args.top_n, cohort_name=Path(args.cohort).resolve().parent.name)
    cohort = load_cohort(args.cohort, args.cohort_utt2spk, mean_vec=args.mean_vec)
    return cohort, args.top_n if args.method == "asnorm" else None, kind


def add_evaluation(parser: Parser) -> None:
    """Add the options that say what to find out of trial lists."""
    from wespeaker.eval.results import DEFAULT_FARS

    parser.add_argument("--far", nargs="+", type=float, default=list(DEFAULT_FARS), help="false acceptance rates")
    parser.add_argument("--p_target", type=float, default=0.01, help="prior of a target trial in minDCF")
    parser.add_argument(
        "--target_far",
        nargs="+",
        type=float,
        default=[],
        metavar="FAR",
        help="false acceptance rates to write thresholds for, to threshold.json in --output_dir",
    )
    add_bootstrap(parser)
    parser.add_argument("--note", help="a remark that heads the results, such as which corpus this is")


def add_bootstrap(parser: Parser) -> None:
    """Add the options of the intervals: a bootstrap over speakers."""
    parser.add_argument(
        "--utt2spk",
        metavar="FILE",
        help="'utt spk' lines, for the intervals; without it names begin with the speaker and '/', as in VoxCeleb",
    )
    add_replicates(parser)


def add_replicates(parser: Parser) -> None:
    """Add the options of a bootstrap over whoever it is."""
    from wespeaker.eval.intervals import REPLICATES

    parser.add_argument("--replicates", type=int, default=REPLICATES, help="of the bootstrap; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def to_evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """Return what those options gave, as the functions that evaluate call it."""
    given = {name: getattr(args, name) for name in ("p_target", "utt2spk", "replicates", "seed", "note")}
    return {"fars": args.far, "target_fars": args.target_far, **given}


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the table, and where files were written."""
    written = {
        "DET plot": evaluation.det_path,
        "results": evaluation.results_path,
        "thresholds": evaluation.threshold_path,
    }
    lines = [f"{name + ':':<12}{path}" for name, path in written.items() if path is not None]
    print("\n".join([evaluation.table, *([""] if lines else []), *lines]))
