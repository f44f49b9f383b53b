"""Score pairs of face images, verification packs and templates; print EER, TAR at low FARs and accuracy over folds.

Error rates come with 95 % intervals of a bootstrap over the identities of a list. All lists take their embeddings from
all files of --embeddings together.
"""

from __future__ import annotations

from pathlib import Path

from _cli import Parser, add_replicates, print_evaluation, run

from wespeaker.errors import InputError
from wespeaker.eval.faces.embeddings import load_face_embeddings
from wespeaker.eval.faces.scoring import FaceLists, evaluate_faces
from wespeaker.eval.faces.verification import PAIR_FARS
from wespeaker.eval.results import Asked


def main() -> None:
    """Parse the arguments, evaluate, print the table and where the files are."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--embeddings", type=Path, nargs="+", required=True, metavar="NPZ", help="files of tools/extract_face.py"
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        help="'image1 image2 target|nontarget' lines: one file, cut into ten folds, or one for each fold",
    )
    parser.add_argument("--packs", type=Path, nargs="+", default=[], metavar="FILE", help="packs such as lfw.bin")
    parser.add_argument(
        "--templates",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        help="*_face_tid_mid.txt, *_template_pair_label.txt and, to weight images by the detector's scores, "
        "*_name_5pts_score.txt",
    )
    parser.add_argument(
        "--norms", choices=("keep", "unit"), default="keep", help="of the embeddings that templates are made of"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where to write")
    parser.add_argument("--far", nargs="+", type=float, default=list(PAIR_FARS), help="false acceptance rates")
    parser.add_argument("--p_target", type=float, default=0.01, help="prior of a target pair in minDCF")
    add_replicates(parser)
    parser.add_argument("--note", help="a remark that heads the results, such as which images these are")
    args = parser.parse_args()

    for option, given in (("--pairs", args.pairs), ("--templates", args.templates)):
        if short := next((words for words in given if len(words) < 2), None):
            raise InputError(f"{option} needs a name and files after it, as in {option} lfw FILE; found '{short[0]}'")
    pairs, templates = (
        [(name, [Path(file) for file in files]) for name, *files in given] for given in (args.pairs, args.templates)
    )
    evaluation = evaluate_faces(
        load_face_embeddings(args.embeddings),
        FaceLists(pairs=pairs, packs=args.packs, templates=templates),
        output_dir=args.output_dir,
        asked=Asked(args.far, args.p_target, replicates=args.replicates, seed=args.seed),
        keep_norms=args.norms == "keep",
        note=args.note,
    )
    print_evaluation(evaluation)


if __name__ == "__main__":
    run(main)
