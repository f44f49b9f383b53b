"""Stage 4: embeddings of all utterances of data folders: xvector.ark, xvector.scp, and their mean mean_vec.npy.

Several processes (torchrun, as in tools/train.py) share the utterances and leave the same files as one.
"""

from pathlib import Path

from _cli import Parser, run

from wespeaker.data.manifest import read_manifest
from wespeaker.eval.extraction import extract
from wespeaker.interchange.models import load_speaker_net
from wespeaker.ranks import WORK_TIMEOUT, joined_ranks
from wespeaker.train.checkpoint import AVERAGE, weights_of


def main() -> None:
    """Parse the options and extract."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder, or a folder that WeSpeaker published")
    parser.add_argument("--data_dir", type=Path, nargs="+", required=True, help="folders with wav.scp and utt2spk")
    parser.add_argument("--output_dir", type=Path, help="where to put a folder for each; default: RUN/embeddings")
    parser.add_argument("--checkpoint", type=Path, help=f"weights; default: {AVERAGE} in models, or in the folder")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read audio for each process")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to embed")
    args = parser.parse_args()

    config, net = load_speaker_net(args.exp_dir, checkpoint=args.checkpoint)
    weights = args.checkpoint or weights_of(args.exp_dir)
    with joined_ranks(args.device, timeout=WORK_TIMEOUT) as ranks:
        net = net.to(ranks.device)
        for data_dir in args.data_dir:
            utterances = read_manifest(data_dir)
            scp = extract(
                net,
                utterances,
                (args.output_dir or args.exp_dir / "embeddings") / data_dir.name,
                rate=config.dataset_args.resample_rate,
                num_workers=args.num_workers,
                ranks=ranks,
                weights=weights,
                desc=f"embeddings of {data_dir.name}",
            )
            if ranks.first:
                print(f"{len(utterances)} embeddings of {data_dir} in {scp}")


if __name__ == "__main__":
    run(main, in_every_process=True)
