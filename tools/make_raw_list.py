"""Stage 2: list the audio files of a data folder with speaker and length, without copying them (raw.list)."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.manifest import read_manifest, write_raw_list


def main() -> None:
    """Parse the options and write the list."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data folder with wav.scp and utt2spk")
    args = parser.parse_args()
    path = args.data_dir / "raw.list"
    print(f"{write_raw_list(path, read_manifest(args.data_dir))} utterances: {path}")


if __name__ == "__main__":
    run(main)
