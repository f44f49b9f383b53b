"""Alignment by five points: against numpy's least squares and scipy's interpolation."""

import numpy as np
import pytest
from scipy import ndimage

from wespeaker.data.faces.align import REFERENCE_POINTS, align_face, estimate_similarity
from wespeaker.errors import InputError


def least_squares(source, target):
    """Solve u = a x - b y + c, v = b x + a y + d, linear in a, b, c, d."""
    rows = [row for x, y in source for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.asarray(target).reshape(-1), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_least_squares_similarity(seed):
    rng = np.random.default_rng(seed)
    source = rng.uniform(0, 250, (5, 2))
    target = REFERENCE_POINTS if seed % 2 else REFERENCE_POINTS * (-1, 1)  # a mirrored face: turned, not mirrored
    found = estimate_similarity(source, target)
    np.testing.assert_allclose(found, least_squares(source, target), atol=1e-9)
    assert np.linalg.det(found[:, :2]) > 0


def test_a_rotation_scale_and_shift_come_back():
    angle, scale = 0.4, 1.7
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = estimate_similarity(REFERENCE_POINTS, REFERENCE_POINTS @ matrix.T + (12, -3))
    np.testing.assert_allclose(found, np.column_stack([matrix, (12, -3)]), atol=1e-9)


def smooth_picture(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + c)) * np.cos(y / (11 - c)) for c in range(3)]
    return np.round(127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_a_face_is_cut_out_as_scipy_interpolates():
    image = smooth_picture(180, 200)
    angle = 0.3
    matrix = 1.2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (REFERENCE_POINTS - 56) @ matrix.T + (100, 90)
    aligned = align_face(image, landmarks)
    assert aligned.shape == (112, 112, 3)
    inverse = np.linalg.inv(np.vstack([least_squares(landmarks, REFERENCE_POINTS), [0, 0, 1]]))
    swap = inverse[:2, :2][::-1, ::-1]  # scipy counts rows first
    for channel in range(3):
        expected = ndimage.affine_transform(
            image[..., channel].astype(float), swap, inverse[:2, 2][::-1], output_shape=(112, 112), order=1
        )
        assert np.abs(aligned[..., channel] - expected)[2:-2, 2:-2].max() <= 1.01  # rounding


def test_points_that_are_in_place_change_nothing_and_outside_is_black():
    image = smooth_picture(112, 112).astype(int)
    assert np.abs(align_face(image.astype(np.uint8), REFERENCE_POINTS) - image).max() <= 1  # Pillow rounds down
    moved = align_face(image.astype(np.uint8), REFERENCE_POINTS + np.array([30, 0]))
    assert np.abs(moved[:, :82] - image[:, 30:]).max() <= 1
    assert not moved[:, 83:].any()


def test_another_size_is_the_same_face():
    image = smooth_picture(112, 112)
    half = align_face(image, REFERENCE_POINTS, size=56)
    expected = image.reshape(56, 2, 56, 2, 3).mean(axis=(1, 3))  # pixels of twice the side, between four centres
    assert np.abs(half - expected).max() <= 1.01


@pytest.mark.parametrize("landmarks", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_landmarks_without_a_face_are_refused(landmarks):
    with pytest.raises(InputError, match="landmarks must be finite and not all the same"):
        align_face(smooth_picture(112, 112), landmarks)
