"""Stage 3: train the network of a config; called again, it goes on where it stopped.

One process:        python tools/train.py --config conf/mini_qmargin.yaml --train_data data/mini/vox2_dev/shard.list ...
Several processes:  torchrun --standalone --nproc_per_node 4 tools/train.py ...
Several machines:   torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint HOST:29400 ... tools/train.py ... on each
Beforehand:         python tools/train.py --config conf/resnet34_qmargin.yaml --explain --world_size 4 ...

--explain prints what a run would do and what it would need, without training; --train_data may be left out then.
SIGTERM or SIGUSR1 ends it after the step that is under way, with a checkpoint and the exit code 75. (torchrun passes
SIGTERM on, waits half a minute before it kills, and has an exit code of its own.)
"""

from pathlib import Path

import torch
from _cli import Parser, add_training, overrides_of, run, to_config, train_task

from wespeaker.config import Config
from wespeaker.data.dataset import READERS
from wespeaker.errors import InputError
from wespeaker.train.dev import read_dev_trials
from wespeaker.train.explain import explain, speaker_plan
from wespeaker.train.speakers import TrainingData, speaker_task
from wespeaker.train.task import Task


def main() -> None:
    """Parse the options and train."""
    parser = Parser(__doc__)
    add_training(parser, configs="conf/")
    parser.add_argument("--train_data", type=Path, help="shard.list or raw.list of the training set")
    parser.add_argument("--data_type", default="shard", help=f"what --train_data is: {' or '.join(READERS)}")
    parser.add_argument("--noise_data", type=Path, help="noise bank: its wav.scp, or the folder of an LMDB database")
    parser.add_argument("--reverb_data", type=Path, help="the same of room impulse responses")
    parser.add_argument("--dev_data", type=Path, help="data folder of the dev trials' utterances")
    parser.add_argument("--dev_trials", type=Path, help="trial list to show progress on")
    parser.add_argument(
        "--explain", action="store_true", help="print settings, memory and schedule instead of training"
    )
    parser.add_argument("--world_size", type=int, help="how many processes --explain is to reckon with (1)")
    parser.add_argument("--num_classes", type=int, help="classes that --explain reckons with where there are no data")
    args = parser.parse_args()
    if args.train_data is None and not args.explain:
        parser.error("the following arguments are required: --train_data")
    if not args.explain and {args.world_size, args.num_classes} != {None}:
        parser.error("--world_size and --num_classes go with --explain: a run counts its processes and its classes")

    config = to_config(args, Config)
    if args.explain:
        plan = speaker_plan(
            config,
            train_list=args.train_data,
            data_type=args.data_type,
            num_classes=args.num_classes,
            world_size=1 if args.world_size is None else args.world_size,
            device=("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device,
        )
        print(explain(plan, overrides_of(args)))
        return
    if (args.dev_data is None) != (args.dev_trials is None):
        raise InputError("--dev_data and --dev_trials go together, found one of them")
    data = TrainingData(args.train_data, args.data_type, args.noise_data, args.reverb_data)

    def task() -> Task:
        dev = read_dev_trials(args.dev_trials, args.dev_data) if args.dev_trials else None
        return speaker_task(config, data, dev=dev)

    train_task(config, task, args)


if __name__ == "__main__":
    run(main, in_every_process=True)
