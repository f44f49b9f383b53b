"""Stage 2: pack the audio of a data folder into tar shards with an index (shard.list)."""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.manifest import read_manifest
from wespeaker.data.shards import write_shards


def main() -> None:
    """Parse the options and pack."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data folder with wav.scp and utt2spk")
    parser.add_argument("--utts_per_shard", type=int, default=1000, help="utterances in a tar file")
    parser.add_argument("--seed", type=int, default=42, help="of the order of the utterances in the shards")
    args = parser.parse_args()
    utterances = read_manifest(args.data_dir)
    shards = write_shards(args.data_dir / "shards", utterances, utts_per_shard=args.utts_per_shard, seed=args.seed)
    print(f"{len(utterances)} utterances in {len(shards)} shards: {args.data_dir / 'shard.list'}")


if __name__ == "__main__":
    run(main)
