"""Score trial lists with embeddings, or read ready score files, and print EER, minDCF and TAR at low FARs.

Error rates come with 95 % intervals of a bootstrap over the speakers of a list.

Under torchrun one process does it all: VoxCeleb1-H takes seconds (bench/bench_score.py), less than dealing it out.
"""

from __future__ import annotations

from _cli import Parser, add_evaluation, print_evaluation, run, to_evaluation

from wespeaker.data.trials import are_labelled
from wespeaker.errors import InputError
from wespeaker.eval.scoring import evaluate_embeddings, evaluate_scores, score_unlabelled


def main() -> None:
    """Parse the arguments, evaluate, print the table and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument("--embeddings", metavar="SCP", help="xvector.scp of the utterances in the trial lists")
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="LIST",
        help="'utt1 utt2 target|nontarget' or '1|0 utt1 utt2' files; of 'utt1 utt2' files the scores are written alone",
    )
    parser.add_argument("--mean_vec", metavar="NPY", help="mean of the training embeddings, subtracted first")
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", help="ready 'utt1 utt2 score target|nontarget' files instead"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="where to write; needless with --scores")
    add_evaluation(parser)
    args, unexpected = parser.parse_known_args()

    if unexpected:
        option = "--scores" if any(text.endswith(".score") for text in unexpected) else "--trials or --scores"
        raise InputError(f"'{unexpected[0]}' belongs to no option; name files with {option}, as in --scores a.score")
    if (args.embeddings is None) == (args.scores is None):
        raise InputError(
            "give either --embeddings with --trials and --output_dir, to score, "
            "or --scores, for the metrics of ready score files"
        )
    asked = {"output_dir": args.output_dir, **to_evaluation(args)}
    if args.scores is not None:
        if args.trials or args.mean_vec:
            raise InputError("--trials and --mean_vec go with --embeddings; a score file of --scores holds its trials")
        evaluation = evaluate_scores(args.scores, **asked)
    else:
        if not args.trials or args.output_dir is None:
            raise InputError("--embeddings needs --trials, the lists to score, and --output_dir, where to write")
        if not are_labelled(args.trials):
            for path in score_unlabelled(
                args.embeddings, args.trials, output_dir=args.output_dir, mean_vec=args.mean_vec
            ):
                print(f"scores, without error rates, as the list has no labels: {path}")
            return
        evaluation = evaluate_embeddings(args.embeddings, args.trials, mean_vec=args.mean_vec, **asked)
    print_evaluation(evaluation)


run(main)
