"""Stage 1: manifests and trial lists of VoxCeleb, manifests of MUSAN and RIRS_NOISES."""

import os
from pathlib import Path

from _cli import Parser, add_corpora, run, to_corpora

from wespeaker.data.manifest import MAX_BAD_UTTS
from wespeaker.data.prepare import prepare_corpora


def main() -> None:
    """Parse the options and prepare."""
    parser = Parser(__doc__)
    add_corpora(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="the data folder")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes that read and decode")
    parser.add_argument("--rate", type=int, default=16000, help="sample rate in Hz that noises and rooms must have")
    parser.add_argument(
        "--max_bad_utts", type=float, default=MAX_BAD_UTTS, help="share of unreadable files to leave out"
    )
    args = parser.parse_args()
    prepare_corpora(to_corpora(args), args.output_dir, num_jobs=args.nj, rate=args.rate, max_bad_utts=args.max_bad_utts)
    print(f"manifests and trial lists are in {args.output_dir}")


if __name__ == "__main__":
    run(main)
