"""Stage 1 for speech of your own: the manifest of any folder tree, and a held-out part with trials.

The speaker of a file is the name of a folder above it (--spk_from parent, --spk_level), or what the group of a regular
expression finds in its path below --wav_dir (--spk_from regex --spk_regex '/(spk[0-9]+)_').
"""

import os
from pathlib import Path

from _cli import CORPORA, Parser, run

from wespeaker.data.custom import SUFFIXES, TEST, TRAIN, prepare_folder, speaker_from_parent, speaker_from_regex
from wespeaker.data.manifest import MAX_BAD_UTTS
from wespeaker.errors import InputError


def main() -> None:
    """Parse the options and prepare."""
    parser = Parser(__doc__)
    parser.add_argument("--wav_dir", type=Path, required=True, help="folder tree of audio")
    parser.add_argument("--output_dir", type=Path, required=True, help="the data folder, such as data/own")
    parser.add_argument("--spk_from", choices=("parent", "regex"), required=True, help="what names the speaker")
    parser.add_argument("--spk_level", type=int, help="which folder: 1 holds the file, 2 is above that; default: 1")
    parser.add_argument("--spk_regex", help="regular expression with one group, which is the speaker")
    parser.add_argument("--skip_unmatched", action="store_true", help="leave out files without a speaker")
    parser.add_argument("--suffix", nargs="+", choices=SUFFIXES, default=list(SUFFIXES), help="which files are audio")
    parser.add_argument("--num_test_speakers", type=int, default=0, help="speakers held out for test and trials")
    parser.add_argument(
        "--utts_per_test_speaker", type=int, default=8, help="all pairs of so many utterances of each are the trials"
    )
    parser.add_argument("--seed", type=int, default=42, help="draws the test speakers and their utterances")
    parser.add_argument("--musan", type=Path, help=f"{CORPORA['musan']}, for training with noise")
    parser.add_argument("--rirs", type=Path, help=f"{CORPORA['rirs']}, for training with reverberation")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes that read and decode")
    parser.add_argument("--rate", type=int, default=16000, help="sample rate in Hz that noises and rooms must have")
    parser.add_argument(
        "--max_bad_utts", type=float, default=MAX_BAD_UTTS, help="share of unreadable files to leave out"
    )
    args = parser.parse_args()
    if args.spk_from == "regex":
        if args.spk_regex is None or args.spk_level is not None:
            raise InputError("--spk_from regex needs --spk_regex, and no --spk_level")
        rule = speaker_from_regex(args.spk_regex)
    else:
        if args.spk_regex is not None:
            raise InputError("--spk_regex goes with --spk_from regex")
        rule = speaker_from_parent(1 if args.spk_level is None else args.spk_level)
    utterances = prepare_folder(
        args.wav_dir,
        args.output_dir,
        speaker_of=rule,
        num_jobs=args.nj,
        rate=args.rate,
        suffixes=args.suffix,
        skip_unmatched=args.skip_unmatched,
        max_bad_utts=args.max_bad_utts,
        num_test_speakers=args.num_test_speakers,
        utts_per_test_speaker=args.utts_per_test_speaker,
        seed=args.seed,
        musan=args.musan,
        rirs=args.rirs,
    )
    speakers = len({utt.spk for utt in utterances})
    print(f"{len(utterances)} utterances of {speakers} speakers: {args.output_dir}")
    if args.num_test_speakers:
        print(f"training set and test set with trials: {args.output_dir / TRAIN}, {args.output_dir / TEST}")


if __name__ == "__main__":
    run(main)
