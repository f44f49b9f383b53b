"""Stage 2: pack the audio of a data folder (wav, flac, m4a, …) into tar shards with an index (shard.list).

Several machines (torchrun, as in tools/train.py, with one process on each) share the shards.
"""

import os
from pathlib import Path

from _cli import Parser, run

from wespeaker.data.manifest import read_manifest
from wespeaker.data.pack import MEMBER_FORMATS, write_shards
from wespeaker.errors import InputError
from wespeaker.ranks import WORK_TIMEOUT, joined_ranks


def main() -> None:
    """Parse the options and pack."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data folder with wav.scp and utt2spk")
    parser.add_argument("--format", choices=MEMBER_FORMATS, default="wav", help="flac takes half the disk")
    parser.add_argument("--rate", type=int, default=16000, help="sample rate in Hz; other audio is resampled")
    parser.add_argument("--utts_per_shard", type=int, default=1000, help="utterances in a tar file")
    parser.add_argument("--seed", type=int, default=42, help="of the order of the utterances in the shards")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes on this machine")
    parser.add_argument(
        "--allow_pipes", action="store_true", help="RUN the shell commands of wav.scp (entries that end in |)"
    )
    args = parser.parse_args()
    with joined_ranks("cpu", timeout=WORK_TIMEOUT) as ranks:
        if args.allow_pipes and ranks.world_size > 1:
            raise InputError("--allow_pipes would run each command in every process; pack such a list with one process")
        packed = write_shards(
            args.data_dir / "shards",
            read_manifest(args.data_dir, allow_pipes=args.allow_pipes),
            utts_per_shard=args.utts_per_shard,
            seed=args.seed,
            rate=args.rate,
            member_format=args.format,
            num_jobs=args.nj,
            ranks=ranks,
        )
    if not ranks.first:
        return
    for what, count in sorted(packed.changed.items()):
        print(f"{count} utterances {what}")
    print(
        f"{packed.num_utts} utterances, {packed.seconds / 3600:.1f} hours, in {len(packed.shards)} shards, "
        f"all read back: {args.data_dir / 'shard.list'}"
    )


if __name__ == "__main__":
    run(main, in_every_process=True)
