"""Stage 7: calibrate normalised scores to log-likelihood ratios, and print what that does to the error rates."""

from pathlib import Path

from _cli import Parser, add_evaluation, print_evaluation, run, to_evaluation

from wespeaker.errors import InputError
from wespeaker.eval.calibrated_scores import calibrate_files, effect_table, read_durations, train_calibration
from wespeaker.eval.calibration import MEASURES, load_calibration, save_calibration
from wespeaker.eval.calibration_trials import NUM_TRIALS
from wespeaker.eval.score_norm import DEFAULT_TOP_N, METHODS, score_kind
from wespeaker.eval.scoring import evaluate_scores


def main() -> None:
    """Parse the arguments, train or read a calibration, apply it, print the tables and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", required=True, help="normalised scores, as tools/score_norm.py leaves"
    )
    parser.add_argument("--utt2dur", metavar="FILE", help="durations of their utterances, for the measure 'duration'")
    parser.add_argument("--data_dir", metavar="DIR", help="training set: utt2spk and utt2dur")
    parser.add_argument("--embeddings", metavar="SCP", help="xvector.scp of the training set")
    parser.add_argument("--mean_vec", metavar="NPY", help="mean of the training embeddings, as in tools/score.py")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="as the scores were normalised")
    parser.add_argument("--top_n", type=int, default=DEFAULT_TOP_N, help="as the scores were normalised")
    parser.add_argument("--measures", nargs="*", default=list(MEASURES), metavar="NAME", help="quality measures")
    parser.add_argument("--num_trials", type=int, default=NUM_TRIALS, help="training trials, at most; drawn by --seed")
    parser.add_argument("--model", metavar="JSON", help="a calibration to apply, instead of a training set")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="where to write")
    add_evaluation(parser)
    args = parser.parse_args()

    folder = Path(args.output_dir, "calibration")
    durations = None if args.utt2dur is None else read_durations(args.utt2dur)
    if args.model is not None:
        if args.data_dir or args.embeddings:
            raise InputError("--data_dir and --embeddings train a calibration; --model is one, give either")
        calibration = load_calibration(args.model)
    else:
        if args.data_dir is None or args.embeddings is None:
            raise InputError("give --data_dir and --embeddings of a training set, or a ready --model")
        calibration = train_calibration(
            args.data_dir,
            args.embeddings,
            mean_vec=args.mean_vec,
            top_n=args.top_n if args.method == "asnorm" else None,
            score=score_kind(args.method, args.top_n, cohort_name=Path(args.embeddings).resolve().parent.name),
            measures=args.measures,
            p_target=args.p_target,
            num_trials=args.num_trials,
            seed=args.seed,
            output_dir=folder,
        )
        save_calibration(folder / f"{calibration.score}.json", calibration)
    effects = calibrate_files(args.scores, calibration, utt2dur=durations, output_dir=args.output_dir)
    evaluation = evaluate_scores(
        list(effects), output_dir=args.output_dir, prefix=f"cali_{calibration.score}_", **to_evaluation(args)
    )
    print_evaluation(evaluation)
    by_list = dict(zip(evaluation.results["trials"], effects.values(), strict=True))
    print(f"\n{effect_table(by_list, p_target=calibration.p_target)}")


run(main)
