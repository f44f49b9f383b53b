"""The corpus of rendered faces: equal files for equal settings, disjoint persons, balanced folds, whole or not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from wespeaker.data.faces.corpus import FaceCorpusSettings, make_faces
from wespeaker.data.faces.folder import ImageFolder
from wespeaker.data.faces.render import render_face
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError

TINY = FaceCorpusSettings(
    num_train_ids=3, num_train_images=2, num_test_ids=21, num_test_images=5, num_templates=2, num_pairs=8, size=16
)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "faces"
    assert make_faces(folder, TINY)
    return folder


def test_the_number_of_processes_changes_no_byte(
    corpus: Path, tmp_path: Path, tool: Callable[..., CompletedProcess[str]]
) -> None:
    sizes = [text for name, value in vars(TINY).items() for text in (f"--{name}", value)]
    done = tool("make_faces", "--output_dir", tmp_path / "faces", *sizes, "--nj", 2)
    assert done.returncode == 0, done.stderr
    assert "made in" in done.stdout
    assert hashes(tmp_path / "faces") == hashes(corpus)
    again = tool("make_faces", "--output_dir", tmp_path / "faces", *sizes)
    assert "already there, nothing to do" in again.stdout


def test_images_are_the_rendered_ones_of_disjoint_persons(corpus: Path) -> None:
    train, test = ImageFolder(corpus / "train"), ImageFolder(corpus / "test")
    assert (len(train), len(test)) == (3 * 2, 21 * 5)
    persons = [{part.identity(i) for i in range(len(part))} for part in (train, test)]
    assert [len(part) for part in persons] == [3, 21]
    assert not persons[0] & persons[1]
    assert np.array_equal(train.image(3), render_face(42, 1, 1, 16).image)


def test_fewer_training_persons_change_no_other_file(corpus: Path, tmp_path: Path) -> None:
    make_faces(tmp_path / "faces", replace(TINY, num_train_ids=2))
    ours = {path for path in hashes(corpus).items() if path[0] not in ("README.md", "faces.json")}
    theirs = {path for path in hashes(tmp_path / "faces").items() if path[0] not in ("README.md", "faces.json")}
    assert {name.split("/")[1] for name, _ in ours - theirs} == {"id0000002"}
    assert theirs < ours


def test_ten_folds_have_their_own_persons_and_as_many_pairs_of_each_kind(corpus: Path) -> None:
    trials = read_trials(corpus / "pairs.txt")
    assert len(trials) == 10 * 2 * 8
    assert len({trials.name(i) for i in range(len(trials))}) == len(trials)
    images = set(ImageFolder(corpus / "test").paths)
    assert set(trials.utts) <= images
    seen: set[str] = set()
    for fold in range(10):
        part = range(16 * fold, 16 * (fold + 1))
        assert trials.is_target[part].sum() == 8
        persons = set()
        for i in part:
            one, other = (name.split("/")[0] for name in trials.name(i).split())
            assert (one == other) == trials.is_target[i]
            persons |= {one, other}
        assert not persons & seen
        seen |= persons


def test_templates_are_in_the_format_of_ijb(corpus: Path) -> None:
    rows = [line.split() for line in (corpus / "faces_face_tid_mid.txt").read_text().splitlines()]
    assert {name for name, _, _ in rows} == set(ImageFolder(corpus / "test").paths)
    assert len(rows) == 21 * 5
    person, media = {}, {}
    for name, template, medium in rows:
        assert person.setdefault(template, name.split("/")[0]) == name.split("/")[0]
        assert media.setdefault(medium, template) == template
    assert sorted(Counter(template for _, template, _ in rows).values()) == [2] * 21 + [3] * 21
    assert len(person) < len(media) < len(rows)  # some media have several images, some templates several media
    pairs = [line.split() for line in (corpus / "faces_template_pair_label.txt").read_text().splitlines()]
    assert len(pairs) == comb(42, 2)
    assert all(label == str(int(person[one] == person[other])) for one, other, label in pairs)
    assert sum(label == "1" for _, _, label in pairs) == 21


def test_a_folder_with_anything_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    before = hashes(corpus)
    assert not make_faces(corpus, TINY)
    with pytest.raises(InputError, match=r"other settings \(size: 16 there, 20 asked for\); name another folder"):
        make_faces(corpus, replace(TINY, size=20))
    assert hashes(corpus) == before
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"no readable faces\.json; name another folder"):
        make_faces(tmp_path, TINY)
    stamp = json.loads((corpus / "faces.json").read_text())
    assert stamp["seed"] == 42
    assert stamp["made_with"]["numpy"] == np.__version__


def test_an_interrupted_run_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wespeaker.data.faces.corpus.write_lines", fail)
        with pytest.raises(OSError, match="no space left"):
            make_faces(tmp_path / "faces", TINY)
    assert not (tmp_path / "faces").exists()
    assert (tmp_path / "faces.partial").exists()
    assert make_faces(tmp_path / "faces", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_settings_out_of_range_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"num_train_ids must be from 2 .*num_test_ids must be at least 20.*size must"):
        make_faces(tmp_path / "x", FaceCorpusSettings(num_train_ids=1, num_test_ids=5, size=2))
    with pytest.raises(InputError, match=r"num_pairs must be from 1 to 20 .* got 21"):
        make_faces(tmp_path / "x", replace(TINY, num_pairs=21))  # 2 persons x 10 pairs of 5 images
    with pytest.raises(InputError, match="at least 1, got 0"):
        make_faces(tmp_path / "x", TINY, num_jobs=0)
    assert not (tmp_path / "x").exists()
