"""Stage 4: embeddings of all utterances of data folders: xvector.ark, xvector.scp, and their mean mean_vec.npy.

Several processes (torchrun, as in tools/train.py) share the utterances and leave the same files as one.
"""

from pathlib import Path

from _cli import Parser, run

from wespeaker.config import load_config
from wespeaker.data.manifest import read_manifest
from wespeaker.errors import InputError
from wespeaker.eval.extraction import extract
from wespeaker.ranks import WORK_TIMEOUT, joined_ranks
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import AVERAGE, load, load_backbone


def main() -> None:
    """Parse the options and extract."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder")
    parser.add_argument("--data_dir", type=Path, nargs="+", required=True, help="folders with wav.scp and utt2spk")
    parser.add_argument("--output_dir", type=Path, help="where to put a folder for each; default: RUN/embeddings")
    parser.add_argument("--checkpoint", type=Path, help=f"weights; default: models/{AVERAGE} in the run folder")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read audio for each process")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to embed")
    args = parser.parse_args()

    if not (args.exp_dir / "config.yaml").is_file():
        raise InputError(f"{args.exp_dir} is not a run folder (it has no config.yaml); run the training stage first")
    config = load_config(args.exp_dir / "config.yaml")
    with joined_ranks(args.device, timeout=WORK_TIMEOUT) as ranks:
        net = SpeakerNet(config)
        load_backbone(net.model, load(args.checkpoint or args.exp_dir / "models" / AVERAGE))
        net = net.to(ranks.device).eval()
        for data_dir in args.data_dir:
            utterances = read_manifest(data_dir)
            scp = extract(
                net,
                utterances,
                (args.output_dir or args.exp_dir / "embeddings") / data_dir.name,
                rate=config.dataset_args.resample_rate,
                num_workers=args.num_workers,
                ranks=ranks,
                desc=f"embeddings of {data_dir.name}",
            )
            if ranks.first:
                print(f"{len(utterances)} embeddings of {data_dir} in {scp}")


if __name__ == "__main__":
    run(main, in_every_process=True)
