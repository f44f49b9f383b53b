"""Write what run folders hold for TensorBoard: curves, settings, tables and DET plots.

python tools/write_tensorboard.py --exp_dir exp/mini_arcface exp/mini_qmargin, then tensorboard --logdir exp
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from _cli import Parser, run

from wespeaker.report.events import FOLDER, write_events


def main() -> None:
    """Parse the options, write, and say how to look at it."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", nargs="+", type=Path, required=True, metavar="EXP", help="run folders")
    parser.add_argument(
        "--output_dir", type=Path, help=f"where to write a folder for each run, instead of {FOLDER} in the run's own"
    )
    parser.add_argument(
        "--follow", type=float, metavar="SECONDS", help="look for news that often, during training, until interrupted"
    )
    args = parser.parse_args()
    with suppress(KeyboardInterrupt):  # what ends --follow
        write_events(args.exp_dir, output_dir=args.output_dir, follow_seconds=args.follow)
    shown = [args.output_dir] if args.output_dir else args.exp_dir
    print(f"to look at it: tensorboard --logdir {shown[0] if len(shown) == 1 else shown[0].parent}")


if __name__ == "__main__":
    run(main)
