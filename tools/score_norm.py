"""Stage 6: normalise scores by a cohort of training speakers (AS-Norm, S-Norm), and print the error rates.

Under torchrun one process does it all: the cosines of VoxCeleb1-H's utterances with a cohort of 5,994 speakers take 9 s
of one core (bench/bench_score_norm.py), less than dealing them out.
"""

from _cli import Parser, add_cohort, add_evaluation, print_evaluation, run, to_cohort, to_evaluation

from wespeaker.data.trials import are_labelled
from wespeaker.eval.score_norm import normalise_files
from wespeaker.eval.scoring import evaluate_scores


def main() -> None:
    """Parse the arguments, normalise, print the table and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", required=True, help="cosines, as tools/score.py writes them"
    )
    parser.add_argument("--embeddings", metavar="SCP", required=True, help="xvector.scp of the utterances in them")
    add_cohort(parser)
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="where to write")
    add_evaluation(parser)
    args = parser.parse_args()

    has_labels = are_labelled(args.scores, scores=True)
    cohort, top_n, kind = to_cohort(args)
    written = normalise_files(
        args.scores, scp=args.embeddings, cohort=cohort, top_n=top_n, output_dir=args.output_dir, kind=kind
    )
    if not has_labels:
        print("\n".join(f"scores, without error rates, as there are no labels: {path}" for path in written))
        return
    asked = {"output_dir": args.output_dir, "scp": args.embeddings, **to_evaluation(args)}
    print_evaluation(evaluate_scores(written, prefix=f"{kind}_", **asked))


run(main)
