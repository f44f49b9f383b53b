"""Error rates of face verification, of pairs of images (LFW and its like) and of templates (IJB-B, IJB-C)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.trials import Trials
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import BLOCK, PathLike, centred_norms
from wespeaker.eval.faces.extraction import Flip
from wespeaker.eval.faces.folds import NUM_FOLDS, fold_accuracies
from wespeaker.eval.faces.table import face_table
from wespeaker.eval.faces.templates import linked_identities, pool_templates, pooling_mode
from wespeaker.eval.results import Asked, ListResult, evaluate_list
from wespeaker.eval.scoring import Evaluation, collect_results, write_evaluation

PAIR_FARS = (1e-1, 1e-2, 1e-3)  # 1e-3 is what LFW's 3,000 nontarget pairs resolve
TEMPLATE_FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # those that papers report of IJB-B and IJB-C


def pair_scores(embeddings: ArrayLike, pairs: ArrayLike) -> NDArray[np.float64]:
    """Return the cosine of each pair, in [-1, 1]; the squared distance of LFW's papers is 2 - 2 cos.

    Computed in float64 in blocks of pairs, from embeddings that were given length 1 once: beside the scores it needs
    8 bytes for each number of the embeddings. A score depends on its two embeddings alone, not on their order or on
    its place in the list.

    Args:
        embeddings: (I, D), of images or of templates.
        pairs: (N, 2), rows of ``embeddings``.

    Returns:
        (N,) float64.

    Raises:
        InputError: for pairs of rows that do not exist, and for embeddings that are not finite or have norm 0.
    """
    embeddings, pairs = np.asarray(embeddings), np.asarray(pairs)
    rows = np.arange(len(embeddings))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise InputError(f"pairs must be whole numbers of shape (N, 2), found {pairs.dtype} {pairs.shape}")
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(rows):
        raise InputError(f"pairs must be rows of the {len(rows)} embeddings, found {pairs.min()} to {pairs.max()}")
    names = [f"that of row {row}" for row in rows]
    norms = centred_norms(embeddings, rows, np.zeros(embeddings.shape[1]), names=names)
    unit = embeddings / norms[:, None]
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = pairs[start : start + BLOCK].T
        np.einsum("nd,nd->n", unit[first], unit[second], out=scores[start : start + BLOCK])
    return np.clip(scores, -1.0, 1.0, out=scores)  # rounding may give 1 + 2e-16


def evaluate_pairs(
    embeddings: ArrayLike,
    pairs: ArrayLike,
    is_target: ArrayLike,
    *,
    flip: Flip,
    identities: ArrayLike | None = None,
    num_folds: int = NUM_FOLDS,
    asked: Asked | None = None,
) -> ListResult:
    """Find out what LFW asks of a list of pairs of images, and the error rates of all pairs together.

    Args:
        embeddings: (I, D), of images.
        pairs: (N, 2), images.
        is_target: (N,), booleans.
        flip: how the embeddings were made, for the record; see `embed_images`.
        identities: (I,), who is in the images, names or numbers; None gives no intervals, for pairs alone do not tell
            which of them share a person.
        num_folds: contiguous parts of the list that take turns in `fold_accuracies`.
        asked: what to find out; ``utt2spk`` is not used. None asks for `PAIR_FARS` and the default intervals.

    Returns:
        The result; the entry for results.json has the accuracy as ``protocol``.

    Raises:
        InputError: for embeddings, pairs, labels or identities that cannot be evaluated.
    """
    asked = asked or Asked(fars=PAIR_FARS)
    scores = pair_scores(embeddings, pairs)
    pairs, labels = _pairs_and_labels(pairs, is_target)
    folds = fold_accuracies(scores, labels, num_folds=num_folds)
    protocol = {
        "name": "folds",
        "flip": flip,
        "num_images": len(np.asarray(embeddings)),
        "accuracy": folds.mean,
        "standard_error": folds.standard_error,
        "accuracies": folds.accuracies.tolist(),
        "thresholds": folds.thresholds.tolist(),
    }
    if identities is not None:
        identities = np.asarray(identities)
        _check_identities(identities, pairs, labels, "images")
    elif asked.replicates:
        protocol["intervals"] = "none: it is not known which pairs share a person"
    return _evaluate(scores, pairs, labels, identities, asked, protocol)


def evaluate_templates(
    embeddings: ArrayLike,
    template: ArrayLike,
    media: ArrayLike,
    pairs: ArrayLike,
    is_target: ArrayLike,
    *,
    num_templates: int,
    flip: Flip,
    detector_scores: ArrayLike | None = None,
    keep_norms: bool = True,
    identities: ArrayLike | None = None,
    asked: Asked | None = None,
) -> ListResult:
    """Pool images to templates and find out the error rates of pairs of templates, as IJB-B and IJB-C ask.

    The mode of the pooling is in the result, since it moves the TAR at a FAR of 1e-5 by as much as papers differ: one
    network has 94.00 % with ``N1D1F1`` and 94.47 % with ``N0D1F1`` (pull request 1364 of InsightFace).

    Args:
        embeddings: (I, D), of images.
        template: (I,), the template of each image.
        media: (I,), the medium of each image.
        pairs: (N, 2), templates.
        is_target: (N,), booleans.
        num_templates: T.
        flip: how the embeddings were made, for the record; see `embed_images`.
        detector_scores: as in `pool_templates`.
        keep_norms: as in `pool_templates`.
        identities: (T,), who is in the templates, names or numbers; None takes `linked_identities` of the target
            pairs, and gives no intervals where nontarget pairs contradict these.
        asked: what to find out; ``utt2spk`` is not used. None asks for `TEMPLATE_FARS` and the default intervals.

    Returns:
        The result; the entry for results.json says as ``protocol`` how it was found.

    Raises:
        InputError: for embeddings, templates, pairs, labels or identities that cannot be evaluated.
    """
    asked = asked or Asked(fars=TEMPLATE_FARS)
    pooled = pool_templates(
        embeddings,
        template,
        media,
        num_templates=num_templates,
        detector_scores=detector_scores,
        keep_norms=keep_norms,
    )
    scores = pair_scores(pooled, pairs)
    pairs, labels = _pairs_and_labels(pairs, is_target)
    mode = pooling_mode(detector_scores=detector_scores is not None, keep_norms=keep_norms, flip=flip != "none")
    protocol = {
        "name": "templates",
        "mode": mode,
        "flip": flip,
        "num_images": len(np.asarray(template)),
        "num_templates": num_templates,
    }
    if identities is not None:
        identities = np.asarray(identities)
        _check_identities(identities, pairs, labels, "templates")
    elif asked.replicates:
        identities = linked_identities(pairs, labels, num_templates=num_templates)
        num_wrong = len(_contradictions(identities, pairs, labels))
        alone = int((np.bincount(identities) == 1).sum())
        if num_wrong:
            identities = None
            protocol["intervals"] = f"none: target pairs link the templates of {num_wrong:,} nontarget pairs"
        else:
            protocol["intervals"] = f"an identity is what target pairs link; {alone:,} templates are linked to none"
    return _evaluate(scores, pairs, labels, identities, asked, protocol)


def write_face_evaluation(
    found: Mapping[str, ListResult], *, output_dir: PathLike, asked: Asked, note: str | None = None
) -> Evaluation:
    """Write ``results.json``, ``results.txt``, ``det.png`` and ``det.svg``, as speech is evaluated, each whole.

    Args:
        found: of each list, by its name, such as ``lfw``.
        output_dir: where to write; it is made.
        asked: what was asked of the lists; its FARs are marked in the plot.
        note: a remark that heads results.txt and results.json.

    Raises:
        InputError: there is no list.
    """
    if not found:
        raise InputError("there is nothing to write: give the result of at least one list")
    results = collect_results(found, {"score": "cosine"}, note=note, output_dir=output_dir)
    return write_evaluation(results, found, table=face_table(results), asked=asked, output_dir=output_dir)


def _pairs_and_labels(pairs: ArrayLike, is_target: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return pairs, which `pair_scores` has checked, and their labels."""
    pairs, labels = np.asarray(pairs, dtype=np.int32), np.asarray(is_target)
    if labels.dtype != np.bool_ or labels.shape != (len(pairs),):
        raise InputError(
            f"labels must be {len(pairs)} booleans, one for each pair, found {labels.dtype} {labels.shape}"
        )
    return pairs, labels


def _evaluate(
    scores: NDArray[np.float64],
    pairs: NDArray[np.int32],
    labels: NDArray[np.bool_],
    identities: NDArray[Any] | None,
    asked: Asked,
    protocol: Mapping[str, Any],
) -> ListResult:
    """Take the pairs for trials, and the identities for speakers."""
    is_used = np.zeros(int(pairs.max(initial=-1)) + 1, dtype=np.bool_)
    is_used[pairs] = True
    used = np.flatnonzero(is_used)  # the bootstrap must not draw identities that are in no pair
    place = np.cumsum(is_used, dtype=np.int32) - 1
    names = list(map(str, used))
    trials = Trials(names, place[pairs[:, 0]], place[pairs[:, 1]], labels)
    if identities is None:
        asked = replace(asked, replicates=0)
    else:
        asked = replace(asked, utt2spk=dict(zip(names, map(str, identities[used]), strict=True)))
    result = evaluate_list(trials, scores, asked)
    rates = {**result.rates, "protocol": protocol}
    if "interval" in rates:
        interval = dict(rates["interval"])
        rates["interval"] = {"num_identities": interval.pop("num_speakers"), **interval}
    return replace(result, rates=rates)


def _contradictions(identities: NDArray[Any], pairs: NDArray[np.int32], labels: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the pairs whose labels say another thing than their identities."""
    return np.flatnonzero((identities[pairs[:, 0]] == identities[pairs[:, 1]]) != labels)


def _check_identities(identities: NDArray[Any], pairs: NDArray[np.int32], labels: NDArray[np.bool_], kind: str) -> None:
    if len(identities) <= pairs.max(initial=-1):
        raise InputError(f"there are {len(identities)} identities, and pairs of {pairs.max() + 1} {kind}")
    wrong = _contradictions(identities, pairs, labels)
    if wrong.size:
        found = [f"{a} and {b} ({identities[a]}, {identities[b]})" for a, b in pairs[wrong[:10]].tolist()]
        raise InputError(f"the labels of {wrong.size} pairs of {kind} contradict the identities: {listing(found)}")
