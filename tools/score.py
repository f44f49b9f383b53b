"""Score trial lists with embeddings, or read ready score files, and print EER, minDCF and TAR at low FARs."""

from __future__ import annotations

from _cli import Parser, run

from wespeaker.errors import InputError
from wespeaker.eval.scoring import DEFAULT_FARS, evaluate_embeddings, evaluate_scores


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
    if args.scores is not None:
        if args.trials or args.mean_vec:
            raise InputError("--trials and --mean_vec go with --embeddings; a score file of --scores holds its trials")
        evaluation = evaluate_scores(
            args.scores, output_dir=args.output_dir, fars=args.far, p_target=args.p_target, note=args.note
        )
    else:
        if not args.trials or args.output_dir is None:
            raise InputError("--embeddings needs --trials, the lists to score, and --output_dir, where to write")
        evaluation = evaluate_embeddings(
            args.embeddings,
            args.trials,
            mean_vec=args.mean_vec,
            output_dir=args.output_dir,
            fars=args.far,
            p_target=args.p_target,
            note=args.note,
        )
    print(evaluation.table)
    if evaluation.det_path is not None:
        print(f"\nDET plot: {evaluation.det_path}\nresults:  {evaluation.results_path}")


run(main)
