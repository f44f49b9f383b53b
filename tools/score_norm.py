"""Stage 6: normalise scores by a cohort of training speakers (AS-Norm, S-Norm), and print the error rates."""

from pathlib import Path

from _cli import Parser, add_evaluation, print_evaluation, run, to_evaluation

from wespeaker.eval.score_norm import DEFAULT_TOP_N, METHODS, load_cohort, normalise_files, score_kind
from wespeaker.eval.scoring import evaluate_scores


def main() -> None:
    """Parse the arguments, normalise, print the table and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", required=True, help="cosines, as tools/score.py writes them"
    )
    parser.add_argument("--embeddings", metavar="SCP", required=True, help="xvector.scp of the utterances in them")
    parser.add_argument("--cohort", metavar="SCP", required=True, help="xvector.scp of the training set")
    parser.add_argument("--cohort_utt2spk", metavar="FILE", required=True, help="speakers of the training set")
    parser.add_argument("--mean_vec", metavar="NPY", help="mean of the training embeddings, as in tools/score.py")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="nearest speakers, or all of them")
    parser.add_argument("--top_n", type=int, default=DEFAULT_TOP_N, help="how many nearest speakers (asnorm)")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="where to write")
    add_evaluation(parser)
    args = parser.parse_args()

    kind = score_kind(args.method, args.top_n, cohort_name=Path(args.cohort).resolve().parent.name)
    written = normalise_files(
        args.scores,
        scp=args.embeddings,
        cohort=load_cohort(args.cohort, args.cohort_utt2spk, mean_vec=args.mean_vec),
        top_n=args.top_n if args.method == "asnorm" else None,
        output_dir=args.output_dir,
        kind=kind,
    )
    print_evaluation(evaluate_scores(written, output_dir=args.output_dir, prefix=f"{kind}_", **to_evaluation(args)))


run(main)
