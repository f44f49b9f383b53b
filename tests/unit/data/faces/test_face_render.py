"""Rendered faces: the same for the same numbers, true landmarks, and neither trivial nor hopeless to tell apart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_curve

from wespeaker.data.faces.draws import Draws
from wespeaker.data.faces.geometry import project, surface, to_pixels, view
from wespeaker.data.faces.identity import draw_identity
from wespeaker.data.faces.nuisance import draw_nuisance
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.faces.render import render_face
from wespeaker.parallel import map_in_processes


def test_a_face_is_a_square_of_bytes_with_landmarks_in_their_places() -> None:
    for size in (48, 112):
        face = render_face(1, 2, 3, size)
        assert face.image.shape == (size, size, 3)
        assert face.image.dtype == np.uint8
        assert face.image.flags.c_contiguous
        left_eye, right_eye, nose, left_corner, right_corner = face.landmarks / size
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_corner[0] < right_corner[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_corner[1], right_corner[1])


def _bytes(k: int) -> bytes:
    return render_face(5, 17, k, 48).image.tobytes()


def test_neither_order_nor_process_changes_a_pixel() -> None:
    alone = [_bytes(k) for k in range(4)]
    assert [_bytes(k) for k in reversed(range(4))] == alone[::-1]
    assert list(map_in_processes(_bytes, range(4), num_jobs=2)) == alone


@pytest.mark.parametrize("other", [(6, 17, 0), (5, 18, 0), (5, 17, 1)])
def test_seed_person_and_number_each_change_the_image(other: tuple[int, int, int]) -> None:
    assert not np.array_equal(render_face(*other, 48).image, render_face(5, 17, 0, 48).image)


def test_the_same_face_is_seen_at_each_size() -> None:
    """With little noise, a large image averaged over blocks is nearly the small one."""
    quiet = [identity for identity in range(20) if draw_nuisance(3, identity, 0).noise < 0.01]
    assert len(quiet) > 3
    for identity in quiet:
        small, large = render_face(3, identity, 0, 48), render_face(3, identity, 0, 192)
        np.testing.assert_allclose((large.landmarks + 0.5) / 4, small.landmarks + 0.5)
        blocks = large.image.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), small.image.ravel())[0, 1] > 0.97


def test_pixels_show_the_point_that_is_projected_onto_them() -> None:
    """`view` intersects lines of sight and `project` turns points: each is the other's inverse."""
    size = 112
    for identity in range(20):
        person, nuisance = draw_identity(0, identity), draw_nuisance(0, identity, 0)
        seen = view(person, nuisance, size)
        for u, v in ((0.0, 0.0), (-0.25, -0.1), (0.25, -0.1), (0.15, 0.45), (-0.1, 0.6)):
            where = to_pixels(nuisance, [project(person, nuisance, surface(person, u, v))], size)[0]
            at = partial(map_coordinates, coordinates=where[::-1, None], order=1)
            assert at(seen.u).item() == pytest.approx(u, abs=0.01)
            assert at(seen.v).item() == pytest.approx(v, abs=0.01)
            assert at(seen.inside).item() > 0


def test_pupils_are_where_the_landmarks_say() -> None:
    """The darkest pixels near each eye, but for the gaze, lie around the landmark."""
    offsets = []
    for identity in range(150):
        person, nuisance = draw_identity(0, identity), draw_nuisance(0, identity, 0)
        if nuisance.glasses or nuisance.blur or person.eye_height * nuisance.eyelids < 0.045:
            continue
        face = render_face(0, identity, 0, 112)
        for x, y in face.landmarks[:2]:
            left, top = round(x) - 4, round(y) - 4
            patch = face.image[top : top + 9, left : left + 9].mean(axis=2)
            rows, columns = np.nonzero(patch <= np.quantile(patch, 0.12))
            offsets.append((columns.mean() + left - x, rows.mean() + top - y))
    assert len(offsets) > 50
    assert np.abs(np.median(offsets, axis=0)).max() < 0.7


def test_turning_the_head_moves_the_nose_further_than_the_eyes() -> None:
    person, still = draw_identity(0, 1), replace(draw_nuisance(0, 1, 0), yaw=0.0, pitch=0.0, roll=0.0)
    turned = replace(still, yaw=0.3)
    eye, tip = surface(person, 0.0, person.eye_v), surface(person, 0.0, person.nose_v, above=person.nose_depth)
    moved = [project(person, turned, point)[0] - project(person, still, point)[0] for point in (eye, tip)]
    assert 0 < moved[0] < moved[1]


def test_draws_are_clipped_and_colours_are_colours() -> None:
    draws = Draws(np.random.default_rng(0))
    normal = np.array([draws.normal(1, 2) for _ in range(5000)])
    assert np.abs(normal - 1).max() <= 5
    assert normal.std() == pytest.approx(2, rel=0.05)
    colours = np.array([draws.colour(0, 1) for _ in range(1000)])
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert np.mean([draws.chance(0.3) for _ in range(2000)]) == pytest.approx(0.3, abs=0.04)


def _pixels(faces: RenderedFaces) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return grey images of 24 x 24, (N, 576), and whom they show, (N,)."""
    images = np.stack([faces.image(i) for i in range(len(faces))]).mean(axis=3)
    small = images.reshape(len(faces), 24, 2, 24, 2).mean(axis=(2, 4))
    return small.reshape(len(faces), -1), np.array([faces.identity(i) for i in range(len(faces))])


def _eer(embeddings: NDArray[np.float64], persons: NDArray[np.int64]) -> float:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    one, other = np.triu_indices(len(unit), 1)
    far, tar, _ = roc_curve(persons[one] == persons[other], (unit @ unit.T)[one, other])
    nearest = np.argmin(np.abs(far - (1 - tar)))
    return float(far[nearest] + 1 - tar[nearest]) / 2


def test_raw_pixels_tell_unseen_persons_apart_badly_and_a_learned_projection_better() -> None:
    """30 % and 11 % of equal errors for 200 training and 100 test persons; half of them here."""
    train, train_persons = _pixels(RenderedFaces(100, 6, size=48, seed=42))
    test, persons = _pixels(RenderedFaces(40, 6, size=48, seed=42, first=1000))
    raw = _eer(test - train.mean(axis=0), persons)
    assert 0.22 < raw < 0.42
    pca = PCA(100, random_state=0).fit(train)
    lda = LinearDiscriminantAnalysis(n_components=40).fit(pca.transform(train), train_persons)
    assert _eer(lda.transform(pca.transform(test)), persons) < 0.65 * raw
