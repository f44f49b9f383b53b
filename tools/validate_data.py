"""Decode every utterance of a data folder and report lengths, levels, damage, duplicates and what training drops.

A table goes to the screen, report.json with all lists into the data folder. The exit code is 1 where something must be
mended: unreadable or non-finite audio, the same audio under two speakers.
"""

import os
from pathlib import Path

from _cli import Parser, run

from wespeaker.config import load_config
from wespeaker.data.report import report_table
from wespeaker.data.validate import validate_data
from wespeaker.documents import write_json
from wespeaker.errors import InputError


def main() -> None:
    """Parse the options, validate, print the table and write the report."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data folder with wav.scp and utt2spk")
    parser.add_argument("--config", help="a file of conf/, for what training with it leaves out")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the config")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="files decoded at a time")
    args = parser.parse_args()
    if args.set and args.config is None:
        raise InputError("--set changes the config of --config, which is not given")
    config = load_config(args.config, args.set) if args.config else None
    report = validate_data(args.data_dir, num_threads=args.nj, config=config)
    path = args.data_dir / "report.json"
    write_json(path, report.to_json())
    print(f"{report_table(report)}\n\nreport with all lists: {path}")
    if report.errors:
        found = ", ".join(f"{len(finding.items)} {finding.name}" for finding in report.errors)
        raise InputError(f"{args.data_dir} must be mended before training ({found}); {path} has the whole lists")


if __name__ == "__main__":
    run(main)
