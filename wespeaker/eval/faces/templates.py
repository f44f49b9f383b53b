"""Templates, the sets of images of one person that IJB-B and IJB-C compare: one embedding for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import BLOCK, centred_norms


def pool_templates(
    embeddings: ArrayLike,
    template: ArrayLike,
    media: ArrayLike,
    *,
    num_templates: int,
    detector_scores: ArrayLike | None = None,
    keep_norms: bool = True,
) -> NDArray[np.float64]:
    """Return one embedding of length 1 for each template: the sum over its media of the mean over their images.

    ``t = Σ_m 1/|m| Σ_{i in m} w_i f_i``, then t / ‖t‖, with w_i = 1 or the score of the face detector. A medium is a
    photograph or a video, whose many frames count as one. Source: the evaluation of IJB-B and IJB-C in ArcFace's
    published code. Computed in float64 in blocks of images.

    Args:
        embeddings: (I, D), of images.
        template: (I,), the template of each image, from 0 to ``num_templates`` - 1.
        media: (I,), the medium of each image, any whole numbers; one number in two templates means two media.
        num_templates: T.
        detector_scores: (I,), from 0; None weights all images alike.
        keep_norms: whether the embeddings are used as they are, so that long ones weigh more; else with length 1.

    Returns:
        (T, D) float64.

    Raises:
        InputError: for arrays that do not fit each other, for templates without an image and for embeddings without
            a direction, naming the first ten.
    """
    features = np.asarray(embeddings)
    template, media = np.asarray(template), np.asarray(media)
    num_images = len(features)
    weights = np.ones(num_images) if detector_scores is None else np.asarray(detector_scores, dtype=np.float64)
    if not template.shape == media.shape == weights.shape == (num_images,):
        raise InputError(
            f"there are {num_images} embeddings, and templates, media and detector scores of shapes {template.shape}, "
            f"{media.shape} and {weights.shape}; give one of each for every image"
        )
    if template.dtype.kind not in "iu" or media.dtype.kind not in "iu":
        raise InputError(f"templates and media must be whole numbers, found {template.dtype} and {media.dtype}")
    if not (weights >= 0).all():
        raise InputError("scores of a face detector must be numbers from 0")
    if not 0 <= template.min(initial=0) <= template.max(initial=0) < num_templates:
        raise InputError(
            f"templates must be numbered from 0 to {num_templates - 1}, found {template.min()} to {template.max()}"
        )
    empty = np.flatnonzero(np.bincount(template, minlength=num_templates) == 0)
    if empty.size:
        raise InputError(f"{empty.size} of {num_templates} templates have no image: {listing(empty.tolist())}")

    mean = np.zeros(features.shape[1])
    if not keep_norms:
        names = [f"that of image {i}" for i in range(num_images)]
        weights = weights / centred_norms(features, np.arange(num_images), mean, names=names)
    order = np.lexsort((media, template))
    of_template, of_media = template[order], media[order]
    is_first = np.append(True, (np.diff(of_template) != 0) | (np.diff(of_media) != 0))
    medium = np.cumsum(is_first) - 1
    weights = weights[order] / np.bincount(medium)[medium]
    pooled = np.zeros((num_templates, features.shape[1]))
    for start in range(0, num_images, BLOCK):
        rows = slice(start, start + BLOCK)
        firsts = np.flatnonzero(np.append(True, np.diff(of_template[rows]) != 0))
        weighted = features[order[rows]] * weights[rows, None]
        pooled[of_template[rows][firsts]] += np.add.reduceat(weighted, firsts, axis=0)
    names = [f"that of template {t}" for t in range(num_templates)]
    pooled /= centred_norms(pooled, np.arange(num_templates), mean, names=names)[:, None]
    return pooled


def pooling_mode(*, detector_scores: bool, keep_norms: bool, flip: bool) -> str:
    """Name what makes results on IJB differ from each other, in the notation of ArcFace's code.

    >>> pooling_mode(detector_scores=True, keep_norms=False, flip=True)
    'N0D1F1'
    """
    return f"N{int(keep_norms)}D{int(detector_scores)}F{int(flip)}"


def linked_identities(pairs: ArrayLike, is_target: ArrayLike, *, num_templates: int) -> NDArray[np.int32]:
    """Number the identities that target pairs tell: templates that are linked by them, through others too, share one.

    A template in no target pair is an identity of its own.

    Args:
        pairs: (N, 2), templates from 0 to ``num_templates`` - 1.
        is_target: (N,), booleans.
        num_templates: T.

    Returns:
        (T,), from 0.

    >>> linked_identities([[0, 1], [1, 3], [0, 2]], [True, True, False], num_templates=4)
    array([0, 0, 1, 0], dtype=int32)
    """
    first, second = np.asarray(pairs)[np.asarray(is_target, dtype=np.bool_)].T
    links = coo_array((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(num_templates, num_templates))
    identities: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return identities
