"""A corpus of rendered faces: training images, test images of other persons, pairs in ten folds, and templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wespeaker.data.faces.render import render_face
from wespeaker.data.faces.templates import Templates, write_templates
from wespeaker.data.made import is_made, making
from wespeaker.data.randomness import generator
from wespeaker.data.trials import LABELS
from wespeaker.errors import InputError
from wespeaker.files import write_lines
from wespeaker.parallel import map_in_processes
from wespeaker.progress import progress

STAMP = "faces.json"
VERSION = 1  # raise it when the same settings make other files
NUM_FOLDS = 10
FIRST_TEST_IDENTITY = 1_000_000  # so that the test set is the same for any number of training identities
TRAIN, TEST, PAIRS = "train", "test", "pairs.txt"
MEDIA, TEMPLATE_PAIRS = "faces_face_tid_mid.txt", "faces_template_pair_label.txt"

README = """\
# Rendered faces

Every face here is synthetic: no person was photographed. Error rates on them show that a pipeline learns and ranks;
they say nothing about photographs. `{stamp}` has the settings.

| path | holds |
|---|---|
| `{train}/IDENTITY/NUMBER.png` | {num_train_ids} persons x {num_train_images} images to train with |
| `{test}/IDENTITY/NUMBER.png` | {num_test_ids} other persons x {num_test_images} images |
| `{pairs}` | pairs of test images in ten folds, see below |
| `{media}` | lines `image template medium`: {num_templates} templates of each test person, as IJB has them |
| `{template_pairs}` | lines `template1 template2 label`: all pairs of templates, 1 for one person |

`{pairs}` has lines `image1 image2 label`, the label `target` for one person and `nontarget` for two. Its tenths are
the folds: {num_pairs} pairs of each kind, and no person is in two of them.
"""


@dataclass(frozen=True)
class FaceCorpusSettings:
    """Everything a corpus of faces depends on: equal settings give equal files.

    Attributes:
        num_train_ids: persons to train with.
        num_train_images: images of each.
        num_test_ids: persons to test with.
        num_test_images: images of each.
        num_templates: templates of each test person; its images are dealt to them.
        num_pairs: pairs of one person in each of the ten folds, and as many of two.
        size: height and width of the images in pixels.
        seed: of every draw.

    """

    num_train_ids: int = 600
    num_train_images: int = 12
    num_test_ids: int = 100
    num_test_images: int = 12
    num_templates: int = 3
    num_pairs: int = 300
    size: int = 48
    seed: int = 42

    def check(self) -> None:
        """Raise an InputError that lists every setting which cannot be used."""
        ids = self.num_test_ids // NUM_FOLDS  # of the smallest fold
        images = self.num_test_images
        most = min(ids * images * (images - 1) // 2, ids * (ids - 1) // 2 * images**2)
        problems = [
            f"{name} must be {wanted}, got {getattr(self, name)}"
            for name, holds, wanted in (
                (
                    "num_train_ids",
                    2 <= self.num_train_ids <= FIRST_TEST_IDENTITY,
                    f"from 2 to {FIRST_TEST_IDENTITY} (persons to tell apart)",
                ),
                ("num_train_images", self.num_train_images >= 1, "at least 1"),
                ("num_test_ids", ids >= 2, f"at least {2 * NUM_FOLDS} (two for each fold)"),
                ("num_test_images", images >= 2, "at least 2 (images to compare)"),
                (
                    "num_templates",
                    2 <= self.num_templates <= images,
                    f"from 2 (to compare) to {images} (num_test_images)",
                ),
                ("num_pairs", 1 <= self.num_pairs <= most, f"from 1 to {most} (as many has the smallest fold)"),
                ("size", 16 <= self.size <= 1024, "from 16 to 1024 pixels"),
            )
            if not holds
        ]
        if problems:
            raise InputError("the corpus of faces cannot be made: " + "; ".join(problems))

    @property
    def description(self) -> dict[str, Any]:
        """What must be equal for two corpora to be equal."""
        return {"corpus": "rendered faces", "version": VERSION, **asdict(self)}


def make_faces(output_dir: Path, settings: FaceCorpusSettings, *, num_jobs: int = 1) -> bool:
    """Make a corpus of rendered faces, unless it is already there.

    The files depend on the settings only and not on the number of processes; they appear all at once.

    Args:
        output_dir: folder of the corpus; missing, empty, or holding the same corpus.
        settings: size of the corpus.
        num_jobs: processes at the same time, at least 1.

    Returns:
        Whether it was made: false if it was there.

    Raises:
        InputError: a setting is out of its range, or the folder holds something else.

    """
    settings.check()
    if num_jobs < 1:
        raise InputError(f"the number of processes (nj) must be at least 1, got {num_jobs}")
    if is_made(output_dir, settings.description, stamp=STAMP):
        return False
    test = [FIRST_TEST_IDENTITY + i for i in range(settings.num_test_ids)]
    packages = ("numpy", "pillow", "scipy")
    with making(output_dir, settings.description, stamp=STAMP, packages=packages) as folder:
        jobs = [(TRAIN, i, settings.num_train_images) for i in range(settings.num_train_ids)]
        jobs += [(TEST, i, settings.num_test_images) for i in test]
        done = map_in_processes(partial(_write_person, folder, settings), jobs, num_jobs=num_jobs)
        for _ in progress(done, desc="faces", total=len(jobs)):
            pass
        images = [[_image_name(i, k) for k in range(settings.num_test_images)] for i in test]
        write_lines(folder / PAIRS, _pairs(images, settings))
        write_templates(_templates(images, settings), folder / MEDIA, folder / TEMPLATE_PAIRS)
        names = {"stamp": STAMP, "train": TRAIN, "test": TEST, "pairs": PAIRS}
        text = README.format(**names, media=MEDIA, template_pairs=TEMPLATE_PAIRS, **asdict(settings))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return True


def _image_name(identity: int, k: int) -> str:
    return f"id{identity:07d}/{k + 1:03d}.png"


def _write_person(root: Path, settings: FaceCorpusSettings, job: tuple[str, int, int]) -> None:
    """Write all images of one person."""
    split, identity, num_images = job
    for k in range(num_images):
        path = root / split / _image_name(identity, k)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_face(settings.seed, identity, k, settings.size).image).save(path)


def _pairs(images: Sequence[Sequence[str]], settings: FaceCorpusSettings) -> Iterator[str]:
    """Yield the lines of ten folds of other persons each: ``num_pairs`` of one person, then as many of two.

    As LFW's list is made, whose ten-fold protocol sets a threshold on nine folds and measures on the tenth.
    """
    for fold, persons in enumerate(np.array_split(np.arange(len(images)), NUM_FOLDS)):
        own = [images[person] for person in persons]
        same = [pair for names in own for pair in combinations(names, 2)]
        different = [(one, other) for a, b in combinations(own, 2) for one in a for other in b]
        for label, pairs in ((1, same), (0, different)):
            rng = generator(settings.seed, "pairs", fold, label)
            for i in np.sort(rng.choice(len(pairs), settings.num_pairs, replace=False)):
                yield " ".join((*pairs[i], LABELS[label]))


def _templates(images: Sequence[Sequence[str]], settings: FaceCorpusSettings) -> Templates:
    """Deal the images of each person to its templates, whose sizes differ by one at most; pair all templates.

    Templates and media are numbered from 1. Each further image of a template begins a medium with even chances: media
    of unequal sizes tell the mean over media from the mean over images.
    """
    names: list[str] = []
    template: list[int] = []
    media: list[int] = []
    persons: list[int] = []  # of the templates
    medium = 0
    for person, of_person in enumerate(images):
        for part in np.array_split(np.arange(len(of_person)), settings.num_templates):
            rng = generator(settings.seed, "media", len(persons) + 1)
            for place, i in enumerate(part):
                medium += place == 0 or bool(rng.random() < 0.5)
                names.append(of_person[i])
                template.append(len(persons))
                media.append(medium)
            persons.append(person)
    pairs = np.array(list(combinations(range(len(persons)), 2)), dtype=np.int32)
    same = np.equal(*np.array(persons)[pairs].T)
    return Templates(
        images=names,
        template=np.array(template, dtype=np.int32),
        media=np.array(media, dtype=np.int32),
        template_ids=np.arange(1, len(persons) + 1, dtype=np.int32),
        pairs=pairs,
        labels=same,
    )
