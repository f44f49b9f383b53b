"""What a user names on the command line, opened."""

import numpy as np
import pytest
from PIL import Image

from wespeaker.data.faces.align import REFERENCE_POINTS
from wespeaker.data.faces.folder import ImageFolder
from wespeaker.data.faces.packs import write_face_pack
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.faces.record_writer import folder_images, write_recordio
from wespeaker.data.faces.recordio import RecordFile
from wespeaker.data.faces.sources import ListedImages, open_faces, open_test_images
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError

FACES = RenderedFaces(num_identities=3, num_images=2, size=16, seed=0)
NAMES = [f"p{i // 2}/{i % 2}.png" for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FACES.image(i)).save(root / name)
    return root


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("p0\np2\n")
    return path


def test_training_images_are_a_folder_or_recordio(folder, two, tmp_path):
    assert isinstance(open_faces(folder), ImageFolder)
    assert open_faces(folder, two).paths == ["p0/0.png", "p0/1.png", "p2/0.png", "p2/1.png"]
    write_recordio(tmp_path / "packed", folder_images(folder))
    for path in (tmp_path / "packed", tmp_path / "packed" / "train.rec"):
        packed = open_faces(path)
        assert isinstance(packed, RecordFile)
        assert [packed.identity(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
        with pytest.raises(InputError, match=r"two.txt chooses identities by their folders, which .*train.rec does"):
            open_faces(path, two)


def test_test_images_are_folders_and_packs(folder, two, tmp_path):
    (tmp_path / "pairs.txt").write_text("p0/0.png p0/1.png target\np0/0.png p1/0.png nontarget\n")
    write_face_pack(tmp_path / "lfw.bin", folder, read_trials(tmp_path / "pairs.txt"))
    sets = open_test_images([folder, tmp_path / "lfw.bin"])
    assert {name: names for name, (_, names) in sets.items()} == {
        "photos": NAMES,
        "lfw": ["lfw.bin:0", "lfw.bin:1", "lfw.bin:2", "lfw.bin:3"],
    }
    assert np.array_equal(sets["lfw"][0].image(3), FACES.image(2))
    chosen = open_test_images([folder], names=["some"], identities=two)
    assert chosen["some"][1] == ["p0/0.png", "p0/1.png", "p2/0.png", "p2/1.png"]


def test_images_of_a_protocol_are_cut_out_by_their_landmarks(folder, tmp_path):
    media, landmarks = tmp_path / "x_face_tid_mid.txt", tmp_path / "x_name_5pts_score.txt"
    media.write_text("p1/1.png 1 1\np0/0.png 2 2\n")
    points = (REFERENCE_POINTS + 0.5) / 7 - 0.5  # of a face that fills a picture of 16 x 16 pixels
    lines = [f"{name} {' '.join(map(str, points.ravel()))} 0.9" for name in ("p0/0.png", "p1/1.png")]
    landmarks.write_text("\n".join(lines) + "\n")
    images, names = open_test_images([folder], media=media)["photos"]
    assert names == ["p1/1.png", "p0/0.png"]
    assert np.array_equal(images.image(0), FACES.image(3))
    aligned = open_test_images([folder], media=media, landmarks=landmarks)["photos"][0].image(0)
    assert aligned.shape == (112, 112, 3)
    inside = aligned[7:-7, 7:-7].reshape(14, 7, 14, 7, 3).mean(axis=(1, 3))
    assert np.abs(inside - FACES.image(3)[1:-1, 1:-1]).mean() < 5  # the same picture, seven times as large


def test_what_does_not_fit_is_a_sentence(folder, two, tmp_path):
    with pytest.raises(InputError, match=r"2 sets of images need as many different names, found photos, photos"):
        open_test_images([folder, folder])
    with pytest.raises(InputError, match="landmarks go with a list of media"):
        open_test_images([folder], landmarks=two)
    with pytest.raises(InputError, match="identities or a list of media, found both"):
        open_test_images([folder], media=two, identities=two)
    with pytest.raises(InputError, match=r"1 of 2 images are not in .*photos: q.png"):
        ListedImages(folder, ["q.png", NAMES[0]])
