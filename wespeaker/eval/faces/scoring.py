"""From embeddings in files to the table: lists of pairs, verification packs, and templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.packs import FacePack
from wespeaker.data.faces.templates import read_templates
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import find_rows
from wespeaker.eval.faces.embeddings import FaceEmbeddings
from wespeaker.eval.faces.folds import NUM_FOLDS
from wespeaker.eval.faces.verification import evaluate_pairs, evaluate_templates, write_face_evaluation
from wespeaker.eval.results import Asked, ListResult
from wespeaker.eval.scoring import Evaluation

NamedFiles = tuple[str, Sequence[Path]]


@dataclass(frozen=True)
class FaceLists:
    """What to evaluate: names for the results, and files.

    Attributes:
        pairs: ``image1 image2 target|nontarget`` lines: one file, which is cut into ten folds, or one for each fold. An
            identity is what stands before the first ``/`` of an image's name.
        packs: verification packs; their file names without the suffix are the names.
        templates: ``*_face_tid_mid.txt``, ``*_template_pair_label.txt`` and, to weight images by the detector's scores,
            ``*_name_5pts_score.txt``.

    """

    pairs: Sequence[NamedFiles] = ()
    packs: Sequence[Path] = ()
    templates: Sequence[NamedFiles] = ()


def evaluate_faces(
    embeddings: FaceEmbeddings,
    lists: FaceLists,
    *,
    output_dir: Path,
    asked: Asked,
    keep_norms: bool = True,
    note: str | None = None,
) -> Evaluation:
    """Score lists by cosine and write error rates and a DET plot, as `write_face_evaluation` does.

    Args:
        embeddings: of all images that the lists name.
        lists: what to evaluate.
        output_dir: where to write.
        asked: what to find out; ``utt2spk`` is not used.
        keep_norms: as in `pool_templates`.
        note: a remark that heads the results.

    Raises:
        InputError: whatever is wrong with a file, named.

    """
    ways = [(name, files, partial(_pairs, embeddings, files, asked)) for name, files in lists.pairs]
    ways += [(path.stem, [path], partial(_pack, embeddings, path, asked)) for path in lists.packs]
    ways += [
        (name, files, partial(_templates, embeddings, files, asked, keep_norms)) for name, files in lists.templates
    ]
    if not ways:
        raise InputError("there is nothing to evaluate: give lists of pairs, packs or templates")
    names = [name for name, _, _ in ways]
    if clashes := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several lists are called {listing(clashes)}; give each a name of its own")
    found = {}
    for name, files, find_out in ways:
        try:
            found[name] = find_out()
        except InputError as error:
            raise InputError(f"{name} ({listing(files, 1)}): {error}") from None
    return write_face_evaluation(found, output_dir=output_dir, asked=asked, note=note)


def _pairs(embeddings: FaceEmbeddings, paths: Sequence[Path], asked: Asked) -> ListResult:
    folds = [read_trials(path) for path in paths]
    if len({len(fold) for fold in folds}) > 1:
        raise InputError(f"files that are folds must have as many pairs each, found {[len(fold) for fold in folds]}")
    images = [name for fold in folds for name in fold.utts]
    firsts = np.cumsum([0, *(len(fold.utts) for fold in folds)])  # where the images of each fold begin
    pairs = [np.stack([fold.enroll, fold.test], axis=1) + first for fold, first in zip(folds, firsts, strict=False)]
    return evaluate_pairs(
        _vectors(embeddings, images),
        np.concatenate(pairs),
        np.concatenate([fold.is_target for fold in folds]),
        flip=embeddings.flip,
        identities=_identities(images) if asked.replicates else None,
        num_folds=NUM_FOLDS if len(folds) == 1 else len(folds),
        asked=asked,
    )


def _vectors(embeddings: FaceEmbeddings, images: Sequence[str]) -> NDArray[np.float32]:
    return embeddings.vectors[find_rows(images, embeddings.images, what="images of the list")]


def _identities(images: Sequence[str]) -> NDArray[np.str_] | None:
    """Return (I,) whom images show by the folder they are in; None if they are in none."""
    return np.array([name.partition("/")[0] for name in images]) if all("/" in name for name in images) else None


def _pack(embeddings: FaceEmbeddings, path: Path, asked: Asked) -> ListResult:
    pack = FacePack(path)
    return evaluate_pairs(
        _vectors(embeddings, pack.names),
        np.arange(len(pack)).reshape(-1, 2),
        pack.is_same,
        flip=embeddings.flip,
        asked=asked,
    )


def _templates(embeddings: FaceEmbeddings, paths: Sequence[Path], asked: Asked, keep_norms: bool) -> ListResult:
    if not 2 <= len(paths) <= 3:
        raise InputError(f"templates are two files, images and pairs, and perhaps landmarks; found {len(paths)}")
    templates = read_templates(*paths)
    return evaluate_templates(
        _vectors(embeddings, templates.images),
        templates.template,
        templates.media,
        templates.pairs,
        templates.labels,
        num_templates=len(templates.template_ids),
        flip=embeddings.flip,
        detector_scores=templates.detector_scores,
        keep_norms=keep_norms,
        asked=asked,
    )
