"""Stage 1: manifests and trial lists of VoxCeleb, manifests of MUSAN and RIRS_NOISES; m4a is decoded to wav."""

import os
from pathlib import Path

from _cli import Parser, add_corpora, run, to_corpora

from wespeaker.data.prepare import prepare_corpora


def main() -> None:
    """Parse the options and prepare."""
    parser = Parser(__doc__)
    add_corpora(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="the data folder")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="files read or decoded at a time")
    parser.add_argument("--rate", type=int, default=16000, help="sample rate in Hz that m4a is decoded to")
    parser.add_argument("--max_bad_share", type=float, default=0.0, help="share of unreadable files to leave out")
    args = parser.parse_args()
    prepare_corpora(
        to_corpora(args), args.output_dir, num_threads=args.nj, rate=args.rate, max_bad_share=args.max_bad_share
    )
    print(f"manifests and trial lists are in {args.output_dir}")


if __name__ == "__main__":
    run(main)
