"""Stage 7: calibrate normalised scores to log-likelihood ratios, and print what that does to the error rates."""

from pathlib import Path

from _cli import Parser, add_cohort, add_evaluation, print_evaluation, run, to_cohort, to_evaluation

from wespeaker.errors import InputError
from wespeaker.eval.calibrated_scores import calibrate_files, effect_table, read_durations, train_calibration
from wespeaker.eval.calibration import MEASURES, load_calibration, save_calibration
from wespeaker.eval.calibration_trials import NUM_TRIALS
from wespeaker.eval.scoring import evaluate_scores


def main() -> None:
    """Parse the arguments, train or read a calibration, apply it, print the tables and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scores", nargs="+", metavar="SCORE", required=True, help="normalised scores, as tools/score_norm.py leaves"
    )
    parser.add_argument("--utt2dur", metavar="FILE", help="durations of their utterances, for the measure 'duration'")
    parser.add_argument("--data_dir", metavar="DIR", help="set to train on, with utt2spk and utt2dur")
    parser.add_argument("--embeddings", metavar="SCP", help="xvector.scp of this set; default: that of the cohort")
    add_cohort(parser)
    parser.add_argument("--measures", nargs="*", default=list(MEASURES), metavar="NAME", help="quality measures")
    parser.add_argument("--num_trials", type=int, default=NUM_TRIALS, help="to train on, at most; drawn by --seed")
    parser.add_argument("--model", metavar="JSON", help="a calibration to apply, instead of a set to train on")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="where to write")
    add_evaluation(parser)
    args = parser.parse_args()

    if (args.model is None) == (args.data_dir is None):
        raise InputError("give either --data_dir, a set to train a calibration on, or --model, a ready one")
    durations = None if args.utt2dur is None else read_durations(args.utt2dur)
    if args.model is not None:
        calibration = load_calibration(args.model)
    else:
        cohort, top_n, kind = to_cohort(args)
        if args.cohort_utt2spk is None and args.embeddings is None:
            raise InputError("with a cohort of speakers' means, give --embeddings, xvector.scp of the set to train on")
        folder = Path(args.output_dir, "calibration")
        calibration = train_calibration(
            args.data_dir,
            args.embeddings or args.cohort,
            cohort,
            top_n=top_n,
            score=kind,
            measures=args.measures,
            p_target=args.p_target,
            num_trials=args.num_trials,
            seed=args.seed,
            output_dir=folder,
        )
        save_calibration(folder / f"{calibration.score}.json", calibration)
    effects = calibrate_files(args.scores, calibration, utt2dur=durations, output_dir=args.output_dir)
    asked = {"output_dir": args.output_dir, "scp": args.embeddings or args.cohort, **to_evaluation(args)}
    evaluation = evaluate_scores(list(effects), prefix=f"cali_{calibration.score}_", **asked)
    print_evaluation(evaluation)
    by_list = dict(zip(evaluation.results["trials"], effects.values(), strict=True))
    print(f"\n{effect_table(by_list, p_target=calibration.p_target)}")


run(main)
