"""Stage 4: embeddings of face images and their mirror images, NAME.npz for each set of images."""

from __future__ import annotations

from pathlib import Path

import torch
from _cli import Parser, run

from wespeaker.data.faces.sources import open_test_images
from wespeaker.eval.faces.embeddings import FaceEmbeddings, write_face_embeddings
from wespeaker.eval.faces.extraction import embed_images
from wespeaker.train.faces import load_face_net


def main() -> None:
    """Parse the options and extract."""
    parser = Parser(__doc__)
    parser.add_argument("--exp_dir", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of images, or verification packs such as lfw.bin",
    )
    parser.add_argument("--identities", type=Path, help="take the persons of this file alone, a folder's name a line")
    parser.add_argument(
        "--media", type=Path, help="take the images that this *_face_tid_mid.txt names, paths in the folder, alone"
    )
    parser.add_argument(
        "--landmarks", type=Path, help="*_name_5pts_score.txt: cut the faces of --media out by their landmarks"
    )
    parser.add_argument("--names", nargs="+", help="what the files are called; default: as the folders and packs")
    parser.add_argument("--output_dir", type=Path, help="where to write; default: RUN/embeddings")
    parser.add_argument("--checkpoint", type=Path, help="weights; default: models/avg_model.pt in the run folder")
    parser.add_argument("--flip", choices=("sum", "concat", "none"), default="sum", help="what mirror images are for")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    limits = {"identities": args.identities, "media": args.media, "landmarks": args.landmarks}
    sets = open_test_images(args.images, names=args.names, **limits)
    net = load_face_net(args.exp_dir, args.checkpoint).to(args.device)
    for name, (images, names) in sets.items():
        vectors = embed_images(
            net, images, flip=args.flip, names=names, num_workers=args.num_workers, desc=f"embeddings of {name}"
        )
        path = (args.output_dir or args.exp_dir / "embeddings") / f"{name}.npz"
        write_face_embeddings(path, FaceEmbeddings(names, vectors, args.flip))
        print(f"{len(names)} embeddings of {name} in {path}")


if __name__ == "__main__":
    run(main)
