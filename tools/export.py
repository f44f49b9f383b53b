"""Stage 8: a run as files for other programs: final.onnx, final_feats.onnx, final.safetensors, and card.json.

final.onnx takes waveforms, so that a user needs onnxruntime alone; final_feats.onnx takes features, as WeSpeaker's.
Both are compared with torch at many lengths, and are not written if they differ. card.json, which is in each of the
other files too, says what the model is and holds the thresholds that stage 5 measured with it.
"""

from pathlib import Path

from _cli import Parser, run

from wespeaker.deploy.export import export
from wespeaker.deploy.parity import parity_table
from wespeaker.train.checkpoint import AVERAGE


def main() -> None:
    """Parse the options, export, print the comparison, the thresholds and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder, or a folder that WeSpeaker published")
    parser.add_argument("--checkpoint", type=Path, help=f"weights; default: {AVERAGE} in models, or in the folder")
    parser.add_argument("--trials", help="list whose thresholds the card gets; default: the one of most nontargets")
    parser.add_argument("--mean_vec", type=Path, metavar="NPY", help="default: the one that the thresholds are of")
    parser.add_argument(
        "--threshold", type=Path, metavar="JSON", help="default: RUN/scores/threshold.json, if it is there"
    )
    parser.add_argument("--p_target", type=float, default=0.01, help="prior of a target trial in the calibration")
    parser.add_argument("--output_dir", type=Path, help="where to; default: RUN/models")
    args = parser.parse_args()

    exported = export(**vars(args))
    print(parity_table(exported.parity))
    decision = exported.card.decision
    if decision is None:
        print("\nthe card has no thresholds, as stage 5 left none; score trials with --target_far and export again")
    else:
        points = (f"{point.threshold:.4f} at FAR {far}" for far, point in decision.target_far.items())
        print(f"\nthresholds of {decision.trials}: {', '.join(points)}")
    print("\n".join(f"{path}  {path.stat().st_size / 1e6:.2f} MB" for path in exported.files))


run(main)
