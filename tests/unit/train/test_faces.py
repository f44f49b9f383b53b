"""Faces as a task of the trainer."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from wespeaker.config import load_config
from wespeaker.data.faces.folder import ImageFolder
from wespeaker.data.faces.packs import write_face_pack
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError
from wespeaker.face_config import FaceConfig
from wespeaker.ranks import Ranks
from wespeaker.train.checkpoint import average_models, load
from wespeaker.train.faces import DevPairs, face_task, load_face_net, read_dev_pack, read_dev_pairs
from wespeaker.train.trainer import train

CONFIGS = sorted((ROOT / "examples/face/conf").glob("*.yaml"))
RANKS = Ranks(0, 1, torch.device("cpu"))
SMALL = (
    "num_epochs=1", "num_avg=1", "dev_interval=1", "dataloader_args.batch_size=4", "dataloader_args.num_workers=0",
    "dataset_args.image_size=16", "model_args.width=2", "scheduler_args.warm_up_epoch=0",
)  # fmt: skip
FACES = RenderedFaces(num_identities=4, num_images=2, size=16, seed=0)


def run(path, folder, *overrides, source=FACES, dev=None):
    config = load_config(path, [f"exp_dir={folder}", *SMALL, *overrides], schema=FaceConfig)
    train(config, face_task(config, source, dev=dev), ranks=RANKS)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_steps(path, tmp_path):
    """All that is changed is the number of images and epochs, their size and the width of the network."""
    (row,) = run(path, tmp_path / "exp")
    assert row["step"] == 2
    assert 0 < row["loss"] < 100
    average_models(tmp_path / "exp/models", 1)
    net = load_face_net(tmp_path / "exp")
    assert not net.training
    weights = load(tmp_path / "exp/models/avg_model.pt")
    assert weights["projection.weight"].shape == (4, net.fc.out_features)
    assert torch.equal(weights["conv1.weight"], net.conv1.weight)


@pytest.fixture
def folder(tmp_path):
    for i in range(len(FACES)):
        path = tmp_path / "images" / f"p{FACES.identity(i)}" / f"{i % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FACES.image(i)).save(path)
    pairs = [f"p{i}/0.png p{i}/1.png target\np{i}/0.png p{(i + 1) % 4}/0.png nontarget\n" for i in (0, 1, 2, 3, 0, 1)]
    (tmp_path / "pairs.txt").write_text("".join(pairs))
    return tmp_path / "images"


def test_progress_is_shown_on_pairs_or_a_pack(folder, tmp_path):
    write_face_pack(tmp_path / "lfw.bin", folder, read_trials(tmp_path / "pairs.txt"))
    from_pairs, from_pack = read_dev_pairs(tmp_path / "pairs.txt", folder), read_dev_pack(tmp_path / "lfw.bin")
    assert np.array_equal(from_pairs.is_target, from_pack.is_target)
    rows = [run(CONFIGS[0], tmp_path / name, dev=dev)[-1] for name, dev in (("a", from_pairs), ("b", from_pack))]
    for name in ("dev_eer", "dev_accuracy"):
        assert 0 <= rows[0][name] <= 1
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-6)


def test_a_network_that_is_shown_to_be_perfect(folder):
    """Pairs of an image with itself, and with its negative, whatever the weights."""
    config = load_config(CONFIGS[0], SMALL, schema=FaceConfig)

    class Halves:
        def __len__(self):
            return 2

        def image(self, i):
            return np.full((16, 16, 3), 255 * i, dtype=np.uint8)

    pairs = np.array([[0, 0], [0, 1]] * 10)
    task = face_task(config, FACES, dev=DevPairs(Halves(), pairs, pairs[:, 0] == pairs[:, 1]))
    assert task.evaluate is not None
    assert task.evaluate(task.network().eval()) == {"dev_eer": 0, "dev_accuracy": 1}


def test_a_run_does_not_go_on_with_other_persons(folder, tmp_path):
    run(CONFIGS[0], tmp_path / "exp", source=ImageFolder(folder))
    with pytest.raises(InputError, match=r"other data: .*identities that are no longer there: p3"):
        run(CONFIGS[0], tmp_path / "exp", source=ImageFolder(folder, ["p0", "p1", "p2"]))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        load_face_net(tmp_path)
