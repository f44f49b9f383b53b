"""Check a config and print it with all defaults, or print some of its values, one a line."""

from _cli import Parser, run

from wespeaker.config import Config, TrainConfig, load_config
from wespeaker.errors import InputError, nearest
from wespeaker.face_config import FaceConfig

SCHEMAS: dict[str, type[TrainConfig]] = {"speaker": Config, "face": FaceConfig}


def main() -> None:
    """Parse the options and print."""
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, help="a file of conf/")
    parser.add_argument("--task", choices=sorted(SCHEMAS), default="speaker", help="what it trains to recognise")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the config")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="top-level keys whose values alone are printed")
    args = parser.parse_args()
    config = load_config(args.config, args.set, schema=SCHEMAS[args.task])
    if args.keys is None:
        print(config.dump(), end="")
        return
    for key in args.keys:
        if key not in type(config).model_fields:
            raise InputError(f"the config has no key {key!r}; {nearest(key, type(config).model_fields)}")
        print(getattr(config, key))


if __name__ == "__main__":
    run(main)
