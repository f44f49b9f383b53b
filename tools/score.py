"""Score trial lists with embeddings, or read ready score files, and print EER, minDCF and TAR at low FARs.

Error rates come with 95 % intervals of a bootstrap over the speakers of a list.
"""

from __future__ import annotations

from _cli import Parser, run

from wespeaker.errors import InputError
from wespeaker.eval.intervals import REPLICATES
from wespeaker.eval.results import DEFAULT_FARS
from wespeaker.eval.scoring import evaluate_embeddings, evaluate_scores


def main() -> None:
    """Parse the arguments, evaluate, print the table and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument("--embeddings", metavar="SCP", help="xvector.scp of the utterances in the trial lists")
    parser.add_argument(
        "--trials", nargs="+", metavar="LIST", help="'utt1 utt2 target|nontarget' or '1|0 utt1 utt2' files"
    )
    parser.add_argument("--mean_vec", metavar="NPY", help="mean of the training embeddings, subtracted first")
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", help="ready 'utt1 utt2 score target|nontarget' files instead"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="where to write; needless with --scores")
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
    parser.add_argument(
        "--utt2spk",
        metavar="FILE",
        help="'utt spk' lines, for the intervals; without it names begin with the speaker and '/', as in VoxCeleb",
    )
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="of the bootstrap; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--note", help="a remark that heads the results, such as which corpus this is")
    args, unexpected = parser.parse_known_args()

    if unexpected:
        option = "--scores" if any(text.endswith(".score") for text in unexpected) else "--trials or --scores"
        raise InputError(f"'{unexpected[0]}' belongs to no option; name files with {option}, as in --scores a.score")
    if (args.embeddings is None) == (args.scores is None):
        raise InputError(
            "give either --embeddings with --trials and --output_dir, to score, "
            "or --scores, for the metrics of ready score files"
        )
    asked = {
        "output_dir": args.output_dir,
        "fars": args.far,
        "p_target": args.p_target,
        "target_fars": args.target_far,
        "utt2spk": args.utt2spk,
        "replicates": args.replicates,
        "seed": args.seed,
        "note": args.note,
    }
    if args.scores is not None:
        if args.trials or args.mean_vec:
            raise InputError("--trials and --mean_vec go with --embeddings; a score file of --scores holds its trials")
        evaluation = evaluate_scores(args.scores, **asked)
    else:
        if not args.trials or args.output_dir is None:
            raise InputError("--embeddings needs --trials, the lists to score, and --output_dir, where to write")
        evaluation = evaluate_embeddings(args.embeddings, args.trials, mean_vec=args.mean_vec, **asked)
    print(evaluation.table)
    if evaluation.det_path is not None:
        print(f"\nDET plot:   {evaluation.det_path}\nresults:    {evaluation.results_path}")
    if evaluation.threshold_path is not None:
        print(f"thresholds: {evaluation.threshold_path}")


run(main)
