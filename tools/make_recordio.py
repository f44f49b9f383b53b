"""Pack a folder of face images into RecordIO (train.rec, train.idx, train.lst, property), without MXNet."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.faces.record_writer import folder_images, list_images, write_recordio
from wespeaker.data.faces.recordio import RecordFile


def main() -> None:
    """Parse the options, pack, and read the labels back."""
    parser = Parser(__doc__)
    parser.add_argument("--image_dir", type=Path, required=True, help="folder with a folder of images for each person")
    parser.add_argument("--output_dir", type=Path, required=True, help="where train.rec and the others go")
    parser.add_argument(
        "--lst", type=Path, help="'key<TAB>label<TAB>path' lines that say which images of --image_dir to take"
    )
    args = parser.parse_args()
    images = folder_images(args.image_dir) if args.lst is None else list_images(args.lst, args.image_dir)
    written = write_recordio(args.output_dir, images)
    packed = RecordFile(args.output_dir / "train.rec")
    print(
        f"{len(packed)} images of {packed.num_identities} identities, {written.width} x {written.height} pixels, "
        f"labels read back: {packed.path}"
    )


if __name__ == "__main__":
    run(main)
