"""Stage 3: train the network of a config; called again, it goes on where it stopped.

One process:        python tools/train.py --config conf/mini_qmargin.yaml --train_data data/mini/vox2_dev/shard.list ...
Several processes:  torchrun --standalone --nproc_per_node 4 tools/train.py ...

SIGTERM or SIGUSR1 ends it after the step that is under way, with a checkpoint and the exit code 75. (torchrun passes
SIGTERM on, waits half a minute before it kills, and has an exit code of its own.)
"""

from pathlib import Path

from _cli import Parser, add_training, run, to_config, train_task

from wespeaker.config import Config
from wespeaker.data.dataset import READERS
from wespeaker.errors import InputError
from wespeaker.train.dev import read_dev_trials
from wespeaker.train.speakers import TrainingData, speaker_task


def main() -> None:
    """Parse the options and train."""
    parser = Parser(__doc__)
    add_training(parser, configs="conf/")
    parser.add_argument("--train_data", type=Path, required=True, help="shard.list or raw.list of the training set")
    parser.add_argument("--data_type", choices=sorted(READERS), default="shard", help="what --train_data is")
    parser.add_argument("--noise_data", type=Path, help="wav.scp of the noise bank")
    parser.add_argument("--reverb_data", type=Path, help="wav.scp of the room impulse responses")
    parser.add_argument("--dev_data", type=Path, help="data folder of the dev trials' utterances")
    parser.add_argument("--dev_trials", type=Path, help="trial list to show progress on")
    args = parser.parse_args()

    config = to_config(args, Config)
    if (args.dev_data is None) != (args.dev_trials is None):
        raise InputError("--dev_data and --dev_trials go together, found one of them")
    data = TrainingData(args.train_data, args.data_type, args.noise_data, args.reverb_data)
    dev = read_dev_trials(args.dev_trials, args.dev_data) if args.dev_trials else None
    train_task(config, speaker_task(config, data, dev=dev), device=args.device)


if __name__ == "__main__":
    run(main)
