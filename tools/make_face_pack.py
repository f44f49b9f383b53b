"""Make a verification pack (such as lfw.bin) of a list of pairs and the face images that it names."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.faces.packs import FacePack, write_face_pack
from wespeaker.data.trials import read_trials


def main() -> None:
    """Parse the options, pack, and read the pairs back."""
    parser = Parser(__doc__)
    parser.add_argument("--image_dir", type=Path, required=True, help="folder that the keys of the pairs are paths in")
    parser.add_argument("--pairs", type=Path, required=True, help="'key1 key2 target|nontarget' lines")
    parser.add_argument("--output", type=Path, required=True, help="the pack, such as exp/orl.bin")
    args = parser.parse_args()
    height, width = write_face_pack(args.output, args.image_dir, read_trials(args.pairs))
    pack = FacePack(args.output)
    print(
        f"{pack.num_pairs} pairs, {int(pack.is_same.sum())} of them of one person, {width} x {height} pixels, "
        f"read back: {pack.path}"
    )


if __name__ == "__main__":
    run(main)
