"""Stage 4: embeddings of all utterances of data folders: xvector.ark, xvector.scp, and their mean mean_vec.npy."""

from pathlib import Path

import torch
from _cli import Parser, run

from wespeaker.config import load_config
from wespeaker.data.manifest import read_manifest
from wespeaker.errors import InputError
from wespeaker.eval.embeddings import write_embeddings
from wespeaker.eval.extraction import embed_utterances
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import AVERAGE, load, load_backbone


def main() -> None:
    """Parse the options and extract."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder")
    parser.add_argument("--data_dir", type=Path, nargs="+", required=True, help="folders with wav.scp and utt2spk")
    parser.add_argument("--output_dir", type=Path, help="where to put a folder for each; default: RUN/embeddings")
    parser.add_argument("--checkpoint", type=Path, help=f"weights; default: models/{AVERAGE} in the run folder")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read audio")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    if not (args.exp_dir / "config.yaml").is_file():
        raise InputError(f"{args.exp_dir} is not a run folder (it has no config.yaml); run the training stage first")
    config = load_config(args.exp_dir / "config.yaml")
    net = SpeakerNet(config)
    load_backbone(net.model, load(args.checkpoint or args.exp_dir / "models" / AVERAGE))
    net = net.to(args.device).eval()
    for data_dir in args.data_dir:
        utterances = read_manifest(data_dir)
        embeddings = embed_utterances(
            net,
            utterances,
            rate=config.dataset_args.resample_rate,
            num_workers=args.num_workers,
            desc=f"embeddings of {data_dir.name}",
        )
        folder = (args.output_dir or args.exp_dir / "embeddings") / data_dir.name
        scp = write_embeddings(folder, embeddings, expected=len(utterances))
        print(f"{len(utterances)} embeddings of {data_dir} in {scp}")


if __name__ == "__main__":
    run(main)
