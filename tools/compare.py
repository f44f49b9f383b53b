"""Compare score files of the same trials with the first: differences of EER, minDCF and TAR at low FARs.

Each difference comes with its 95 % interval and two-sided p-value, of a bootstrap that draws the same speakers for
both systems.
"""

from __future__ import annotations

from _cli import Parser, add_bootstrap, run

from wespeaker.documents import write_json
from wespeaker.eval.comparison import compare_scores, comparison_table
from wespeaker.eval.results import DEFAULT_FARS


def main() -> None:
    """Parse the arguments, compare, print the table and write the JSON."""
    parser = Parser(__doc__)
    parser.add_argument(
        "scores", nargs="+", metavar="SCORE", help="two or more 'utt1 utt2 score target|nontarget' files"
    )
    parser.add_argument("--far", nargs="+", type=float, default=list(DEFAULT_FARS), help="false acceptance rates")
    parser.add_argument("--p_target", type=float, default=0.01, help="prior of a target trial in minDCF")
    add_bootstrap(parser)
    parser.add_argument("--output", metavar="JSON", help="file to write the comparison to")
    args = parser.parse_args()

    comparison = compare_scores(
        args.scores,
        fars=args.far,
        p_target=args.p_target,
        utt2spk=args.utt2spk,
        replicates=args.replicates,
        seed=args.seed,
    )
    if args.output is not None:
        write_json(args.output, comparison.contents())
    print(comparison_table(comparison))
    if args.output is not None:
        print(f"comparison: {args.output}")


run(main)
