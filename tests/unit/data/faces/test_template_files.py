"""The files of a template protocol: read, written, and what is wrong with them."""

import logging

import numpy as np
import pytest

from wespeaker.data.faces.templates import read_templates, write_templates
from wespeaker.errors import InputError

IMAGES = "1.jpg 11 7\n2.jpg 5 7\n3.jpg 11 7\n\n4.jpg\t11\t8\r\n"
PAIRS = "5 11 1\n11 5 0\n5 5 1\n"
LANDMARKS = "".join(f"{n}.jpg {' '.join(str(n + k / 4) for k in range(10))} 0.{n}\n" for n in (2, 1, 3, 4))


def files(folder, images=IMAGES, pairs=PAIRS, landmarks=LANDMARKS):
    paths = [folder / f"toy_{name}.txt" for name in ("face_tid_mid", "template_pair_label", "name_5pts_score")]
    for path, text in zip(paths, (images, pairs, landmarks), strict=True):
        path.write_bytes(text.encode())
    return paths


def test_images_templates_and_pairs_are_read(tmp_path):
    templates = read_templates(*files(tmp_path))
    assert templates.images == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert templates.template_ids.tolist() == [5, 11]
    assert templates.template.tolist() == [1, 0, 1, 1]
    assert templates.media.tolist() == [7, 7, 7, 8]
    assert templates.pairs.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert templates.labels.tolist() == [True, False, True]
    assert (templates.pairs.dtype, templates.labels.dtype, templates.template.dtype) == (np.int32, np.bool_, np.int32)
    assert templates.landmarks.shape == (4, 5, 2)
    assert templates.landmarks[1, :2].tolist() == [[2, 2.25], [2.5, 2.75]]  # of 2.jpg, the first of its file
    assert templates.detector_scores.tolist() == np.float32([0.1, 0.2, 0.3, 0.4]).tolist()


def test_landmarks_are_optional(tmp_path):
    templates = read_templates(*files(tmp_path)[:2])
    assert templates.landmarks is None
    assert templates.detector_scores is None
    with pytest.raises(ValueError, match="no landmarks and scores to write"):
        write_templates(templates, *[tmp_path / name for name in "abc"])


def test_what_is_written_is_read_back(tmp_path):
    written = read_templates(*files(tmp_path))
    paths = [tmp_path / name for name in "abc"]
    write_templates(written, *paths)
    assert paths[0].read_text() == "1.jpg 11 7\n2.jpg 5 7\n3.jpg 11 7\n4.jpg 11 8\n"
    assert paths[1].read_text() == PAIRS
    found = read_templates(*paths)
    for name, value in vars(written).items():
        np.testing.assert_array_equal(getattr(found, name), value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": "1.jpg 11 7\n\n2.jpg 5\n"}, r"mid.txt:3: expected 'image template medium', found '2.jpg 5'"),
        ({"images": "1.jpg\n"}, r"mid.txt:1: expected 'image template medium', found '1.jpg'"),
        ({"images": "1.jpg 11 7 8\n2.jpg 5 7 8\n"}, r"mid.txt:1: expected 'image template medium'"),
        ({"images": "1.jpg x 7\n"}, r"mid.txt:1: template must be a whole number that fits int32, found 'x'"),
        ({"images": "1.jpg 1.5 7\n"}, r"mid.txt:1: template must be a whole number"),
        ({"images": IMAGES + "2.jpg 5 9\n"}, r"mid.txt:6: 2.jpg is in the images of the templates twice"),
        ({"images": "\n"}, r"mid.txt \(the images of the templates\) is empty"),
        ({"pairs": "5 11 1\n\n5 12 0\n"}, r"label.txt:3: template 12 has no image in .*toy_face_tid_mid.txt"),
        ({"pairs": "5 11 1\n0 5 0\n"}, r"label.txt:2: template 0 has no image"),
        ({"pairs": "5 11 1\n5 5 2\n"}, r"label.txt:2: the label must be 1 \(same person\) or 0, found 2"),
        ({"pairs": "5 11 1\n5 5\n"}, r"label.txt:2: expected 'template1 template2 1\|0', found '5 5'"),
        ({"pairs": "5 11 1 4\n"}, r"label.txt:1: expected 'template1 template2 1\|0'"),
        ({"pairs": "5 11 one\n"}, r"label.txt:1: 1\|0 must be a whole number that fits int32, found 'one'"),
        ({"pairs": "5 99999999999 1\n"}, r"label.txt:1: template2 must be a whole number that fits int32"),
        ({"pairs": "5 1_1 1\n"}, r"label.txt:1: template2 must be a whole number that fits int32, found '1_1'"),
        ({"pairs": ""}, r"label.txt \(the pairs of templates\) is empty"),
        ({"pairs": PAIRS + "5 11 0\n"}, r"templates 5 and 11 both as 1 and as 0 \(1 such pairs\)"),
        ({"landmarks": LANDMARKS[:-7]}, r"score.txt:4: expected 'image x1 y1"),
        ({"landmarks": LANDMARKS.replace("0.4", "nan")}, r"score.txt:4: score must be a finite number, found 'nan'"),
        ({"landmarks": LANDMARKS.replace("0.4", "1e39")}, r"score.txt:4: score must be a finite number, found '1e39'"),
        ({"landmarks": LANDMARKS.replace("4.jpg", "5.jpg")}, r"score.txt has no line for 1 images of .*: 4.jpg"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        read_templates(*files(tmp_path, **change))


def test_a_missing_file_is_named(tmp_path):
    images, pairs, _ = files(tmp_path)
    pairs.unlink()
    with pytest.raises(InputError, match=r"label.txt \(the pairs of templates\) does not exist"):
        read_templates(images, pairs)


def test_pairs_that_come_again_are_kept_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        templates = read_templates(*files(tmp_path, pairs=PAIRS + "5 11 1\n11 5 0\n"))
    assert len(templates.pairs) == 5
    assert "2 of 5 pairs repeat an earlier one; each is counted" in caplog.text
