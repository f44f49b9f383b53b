"""Read WeSpeaker's configs and models: say what became of each key, check the weights, and write a run folder.

A config:    python tools/import_wespeaker.py --config conf_of_theirs/resnet.yaml > conf/resnet.yaml
A model:     python tools/import_wespeaker.py --wespeaker_dir voxceleb_resnet34 --exp_dir exp/resnet34

Neither is needed to use them: --config of tools/train.py and run.sh and --exp_dir of tools/extract.py take them as
they are.
"""

import logging
from pathlib import Path

from _cli import Parser, run

from wespeaker.config import load_config, read_document
from wespeaker.errors import InputError
from wespeaker.interchange.config import is_wespeakers, translate


def main() -> None:
    """Parse the options, read, print and write."""
    parser = Parser(__doc__)
    parser.add_argument("--wespeaker_dir", type=Path, help="folder with config.yaml and avg_model.pt (or models/)")
    parser.add_argument("--config", type=Path, help="a config alone, to be printed as ours")
    parser.add_argument("--exp_dir", type=Path, help="run folder to write the model of --wespeaker_dir to")
    args = parser.parse_args()
    if (args.config is None) == (args.wespeaker_dir is None):
        parser.error("give one of --config and --wespeaker_dir")
    if args.exp_dir is not None and args.wespeaker_dir is None:
        parser.error("--exp_dir goes with --wespeaker_dir")

    logging.getLogger("wespeaker.interchange.config").setLevel(logging.ERROR)  # what it says is printed here
    path = args.config or args.wespeaker_dir / "config.yaml"
    document = read_document(path)
    if not is_wespeakers(document):
        raise InputError(f"{path} is no config of WeSpeaker's; what is ours needs no import")
    config = load_config(path)
    print(f"# {path}, a config of WeSpeaker's")
    for line in translate(document).report():
        print(f"# {line}")
    if args.config is not None:
        print(config.dump(), end="")
    else:
        import_model(args.wespeaker_dir, args.exp_dir)


def import_model(folder: Path, exp_dir: Path | None) -> None:
    """Check the model of a folder, say what it is, and write it to a run folder if one is named."""
    from wespeaker.interchange.importing import read_model, write_model  # here, for a config needs no network

    model = read_model(folder)
    print(f"{model.config.model}: {model.num_parameters:,} parameters, all of the shapes of the config")
    if model.num_classes is not None:
        head = "prototypes that training can go on with" if model.has_head else "their head is not here"
        print(f"{model.num_classes:,} classes, {head}")
    for place in model.mean_vecs:
        print(f"mean of embeddings: {place}")
    if exp_dir is not None:
        write_model(model, exp_dir)
        weights = exp_dir / "models" / "avg_model.pt"
        print(f"written to {exp_dir}; embed and score: bash run.sh --stage 4 --config {exp_dir}/config.yaml", end=" ")
        print(f"--checkpoint {weights}; train on: --set model_init={weights}")


if __name__ == "__main__":
    run(main)
