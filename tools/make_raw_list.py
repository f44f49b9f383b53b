"""Stage 2: list the audio files of a data folder with speaker and length, without copying them (raw.list)."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.manifest import read_manifest, write_raw_list


def main() -> None:
    """Parse the options and write the list."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data folder with wav.scp and utt2spk")
    parser.add_argument(
        "--allow_pipes", action="store_true", help="RUN the shell commands of wav.scp (entries that end in |)"
    )
    args = parser.parse_args()
    path = args.data_dir / "raw.list"
    utterances = read_manifest(args.data_dir, allow_pipes=args.allow_pipes)
    print(f"{write_raw_list(path, utterances)} utterances: {path}")
    if any(utt.source.path.lower().endswith((".m4a", ".wma")) for utt in utterances):
        print("some of them are m4a, which is decoded whole for each crop; tools/make_shards.py makes training faster")


if __name__ == "__main__":
    run(main)
