"""Make a corpus of rendered faces: training and test images, pairs in ten folds, and templates in IJB's format.

The same settings give the same files, whatever --nj is. A corpus that is already there is left as it is.
"""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

from _cli import Parser, run

from wespeaker.data.faces.corpus import FaceCorpusSettings, make_faces

HELP = {
    "num_train_ids": "persons to train with (train)",
    "num_train_images": "images of each",
    "num_test_ids": "persons to test with (test)",
    "num_test_images": "images of each",
    "num_templates": "templates of each test person",
    "num_pairs": "pairs of one person, and of two, in each of the ten folds",
    "size": "height and width of the images in pixels",
    "seed": "of every random draw",
}


def main() -> None:
    """Parse the arguments, make the corpus and say where it is."""
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the corpus", metavar="DIR")
    for field in fields(FaceCorpusSettings):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=HELP[field.name], metavar="N")
    parser.add_argument("--nj", type=int, default=2, help="processes at the same time", metavar="N")
    arguments = vars(parser.parse_args())
    output_dir, num_jobs = arguments.pop("output_dir"), arguments.pop("nj")
    start = time.monotonic()
    if make_faces(output_dir, FaceCorpusSettings(**arguments), num_jobs=num_jobs):
        print(f"{output_dir}: corpus of rendered faces made in {time.monotonic() - start:.0f} s")
    else:
        print(f"{output_dir}: already there, nothing to do")


if __name__ == "__main__":
    run(main)
