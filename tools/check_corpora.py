"""Stage 0 for real corpora: check that the folders are there and complete enough for a config."""

from _cli import Parser, add_corpora, run, to_corpora

from wespeaker.config import load_config
from wespeaker.data.corpora import check_corpora


def main() -> None:
    """Parse the options and check."""
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, help="a file of conf/; it says which augmentation is used")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the config")
    add_corpora(parser)
    args = parser.parse_args()
    check_corpora(to_corpora(args), load_config(args.config, args.set))
    print("the corpora are where they should be")


if __name__ == "__main__":
    run(main)
