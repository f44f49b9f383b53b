"""Stage 3: train the network of a face config; called again, it goes on where it stopped.

One process:        python tools/train_face.py --config examples/face/conf/mini_qmargin.yaml --train_data DIR
Several processes:  torchrun --standalone --nproc_per_node 2 tools/train_face.py ...

The classes of the head are shared out among the processes. SIGTERM or SIGUSR1 ends it after the step that is under way,
with a checkpoint and the exit code 75.
"""

from pathlib import Path

from _cli import Parser, add_training, run, to_config, train_task

from wespeaker.data.faces.sources import open_faces
from wespeaker.errors import InputError
from wespeaker.face_config import FaceConfig
from wespeaker.train.faces import face_task, read_dev_pack, read_dev_pairs
from wespeaker.train.task import Task


def main() -> None:
    """Parse the options and train."""
    parser = Parser(__doc__)
    add_training(parser, configs="examples/face/conf/")
    parser.add_argument(
        "--train_data",
        type=Path,
        required=True,
        help="a train.rec, or a folder with a folder of images for each person",
    )
    parser.add_argument(
        "--identities", type=Path, help="train on the persons of this file alone, a folder's name a line"
    )
    parser.add_argument("--dev_pairs", type=Path, help="'image1 image2 target|nontarget' lines to show progress on")
    parser.add_argument("--dev_images", type=Path, help="folder that the images of --dev_pairs are paths in")
    parser.add_argument("--dev_pack", type=Path, help="verification pack to show progress on instead, such as lfw.bin")
    args = parser.parse_args()

    config = to_config(args, FaceConfig)
    if (args.dev_pairs is None) != (args.dev_images is None):
        raise InputError("--dev_pairs and --dev_images go together, found one of them")
    if args.dev_pairs and args.dev_pack:
        raise InputError("give --dev_pairs or --dev_pack, found both")

    def task() -> Task:
        dev = read_dev_pairs(args.dev_pairs, args.dev_images) if args.dev_pairs else None
        dev = read_dev_pack(args.dev_pack) if args.dev_pack else dev
        return face_task(config, open_faces(args.train_data, args.identities), dev=dev)

    train_task(config, task, args)


if __name__ == "__main__":
    run(main, in_every_process=True)
