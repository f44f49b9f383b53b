"""Make a synthetic speaker corpus in the folder layout of VoxCeleb1, VoxCeleb2, MUSAN and RIRS_NOISES.

The same settings give the same files, whatever --nj is. A corpus that is already there is left as it is.
"""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

from _cli import Parser, run

from wespeaker.data.mini_corpus import CorpusSettings, make_corpus

HELP = {
    "num_train_spk": "training speakers (voxceleb2/dev)",
    "num_dev_spk": "speakers to watch the training with (voxceleb2/test)",
    "num_test_spk": "test speakers (voxceleb1/test)",
    "num_sessions": "sessions of each speaker",
    "num_utts": "utterances of each session",
    "max_sec": "longest utterance in seconds",
    "num_noise_files": "files in musan/noise",
    "num_music_files": "files in musan/music",
    "num_speech_files": "files in musan/speech",
    "num_rirs": "room impulse responses",
    "seed": "of every random draw",
}


def main() -> None:
    """Parse the arguments, make the corpus and say where it is."""
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the corpus", metavar="DIR")
    defaults = CorpusSettings()
    for field in fields(CorpusSettings):
        if field.name in HELP:
            default = getattr(defaults, field.name)
            parser.add_argument(
                f"--{field.name}", type=type(default), default=default, help=HELP[field.name], metavar="N"
            )
    parser.add_argument("--nj", type=int, default=2, help="processes at the same time", metavar="N")
    arguments = vars(parser.parse_args())
    output_dir, num_jobs = arguments.pop("output_dir"), arguments.pop("nj")
    start = time.monotonic()
    if make_corpus(output_dir, CorpusSettings(**arguments), num_jobs=num_jobs):
        print(f"{output_dir}: synthetic mini corpus made in {time.monotonic() - start:.0f} s")
    else:
        print(f"{output_dir}: already there, nothing to do")


if __name__ == "__main__":
    run(main)
