"""Faces turned, scaled and moved so that eyes, nose and mouth come to lie where ArcFace's networks expect them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from wespeaker.errors import InputError

# Left and right eye, tip of the nose, left and right corner of the mouth (as seen in the picture) in pixels of a
# 112 x 112 picture, (x, y) with the first pixel's centre at (0, 0): InsightFace's arcface template.
REFERENCE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
REFERENCE_SIZE = 112


def estimate_similarity(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Return the rotation, scale and shift that bring points nearest to others in the least-squares sense.

    With centred points x and y, their covariance ``mean(y xᵀ) = U D Vᵀ`` and S the identity, or with its last entry -1
    where det(U Vᵀ) < 0 (so that nothing is mirrored): rotation ``R = U S Vᵀ``, scale ``c = tr(D S) / var(x)``, shift
    ``mean(y) - c R mean(x)``; Umeyama, *Least-squares estimation of transformation parameters between two point
    patterns*, PAMI 1991, eq. 40-42.

    Args:
        source: (N, 2) points x, N >= 2.
        target: (N, 2) points y.

    Returns:
        (2, 3) float64, ``[c R | shift]``.

    Raises:
        InputError: the source points are not finite, or all the same.

    """
    x, y = np.asarray(source, np.float64), np.asarray(target, np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    variance = ((x - mean_x) ** 2).sum(axis=1).mean()
    if not np.isfinite(variance) or variance == 0:
        raise InputError(f"landmarks must be finite and not all the same, found {x.tolist()}; leave the picture out")
    u, d, vt = np.linalg.svd((y - mean_y).T @ (x - mean_x) / len(x))
    s = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    matrix = (d * s).sum() / variance * (u * s) @ vt
    return np.column_stack([matrix, mean_y - matrix @ mean_x])


def align_face(image: NDArray[np.uint8], landmarks: ArrayLike, *, size: int = REFERENCE_SIZE) -> NDArray[np.uint8]:
    """Cut a face out by its five landmarks; what lies outside of the picture is black.

    Args:
        image: (H, W, 3) RGB.
        landmarks: (5, 2), (x, y) in pixels of ``image`` in the order of `REFERENCE_POINTS`; the first pixel's centre
            is (0, 0).
        size: of the result; the reference points scale with it.

    Returns:
        (size, size, 3) uint8, interpolated linearly; Pillow rounds down, so values are half a level darker on average.

    Raises:
        InputError: as `estimate_similarity` does.

    """
    # Corners of pixels lie half a pixel before their centres, so centres scale about (-0.5, -0.5).
    reference = (REFERENCE_POINTS + 0.5) * (size / REFERENCE_SIZE)
    inverse = np.linalg.inv(np.vstack([estimate_similarity(np.asarray(landmarks) + 0.5, reference), [0, 0, 1]]))
    return np.array(
        Image.fromarray(image).transform(
            (size, size), Image.Transform.AFFINE, inverse[:2].reshape(-1).tolist(), Image.Resampling.BILINEAR
        )
    )
