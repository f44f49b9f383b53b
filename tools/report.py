"""Write one HTML page that compares runs: error rates, DET plots, training curves, settings, commands.

python tools/report.py exp/mini_arcface exp/mini_qmargin --output report.html
"""

from __future__ import annotations

from pathlib import Path

from _cli import Parser, add_bootstrap, run

from wespeaker.report import write_report


def main() -> None:
    """Parse the options, write the page and say where it is."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="EXP", help="run folders, such as exp/mini_qmargin")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="HTML", help="where to write")
    add_bootstrap(parser)
    args = parser.parse_args()
    write_report(args.folders, args.output, utt2spk=args.utt2spk, replicates=args.replicates, seed=args.seed)
    print(f"report: {args.output}")


if __name__ == "__main__":
    run(main)
