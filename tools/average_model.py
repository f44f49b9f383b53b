"""Stage 4: average the weights of the last epochs of a run into models/avg_model.pt."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.train.checkpoint import average_models


def main() -> None:
    """Parse the options and average."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder")
    parser.add_argument("--num_avg", type=int, required=True, help="how many of the last epochs")
    args = parser.parse_args()
    print(f"averaged the last {args.num_avg} epochs into {average_models(args.exp_dir / 'models', args.num_avg)}")


if __name__ == "__main__":
    run(main)
