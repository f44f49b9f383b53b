from pathlib import Path

import pytest
import yaml

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.face_config import FaceConfig
from wespeaker.face_net import build_face_net

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "examples/face/conf").glob("*.yaml"))
VARYING = {"exp_dir", "projection_args", "margin_update"}


def load(path, *overrides):
    return load_config(path, overrides, schema=FaceConfig)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_its_folder_is_named_after_it(path):
    config = load(path)
    assert config.exp_dir == f"exp/face/{path.stem}"
    assert FaceConfig(**yaml.safe_load(config.dump())) == config


@pytest.mark.parametrize(
    ("family", "losses"),
    [
        ("mini", {"qmargin", "arcface", "cosface"}),
        ("wf42m_r100", {"qmargin", "arcface", "cosface", "entmax", "sparsemax"}),
    ],
)
def test_a_family_differs_only_in_loss_and_margin(family, losses):
    members = {path.stem.removeprefix(f"{family}_"): load(path).model_dump() for path in CONFIGS if family in path.stem}
    assert set(members) == losses
    for member in members.values():
        assert {key for key in member if member[key] != members["qmargin"][key]} <= VARYING


def test_the_paper_recipe_is_to_the_letter():
    """Section 4.2 of the paper, and Table 1 for the losses."""
    family = {path.stem: load(path) for path in CONFIGS if "wf42m" in path.stem}
    config = family["wf42m_r100_qmargin"]
    assert (config.model, config.dataset_args.image_size, config.num_epochs) == ("IResNet100", 112, 20)
    assert config.optimizer == "SGD"
    assert (config.optimizer_args["momentum"], config.optimizer_args["weight_decay"]) == (0.9, 5e-4)
    schedule = config.scheduler_args
    assert (schedule.initial_lr, schedule.milestones, schedule.gamma) == (0.1, [7, 13], 0.1)
    assert (schedule.warm_up_epoch, schedule.scale_ratio) == (0, 1)
    assert (config.dataloader_args.batch_size, config.num_avg) == (128, 1)
    losses = {
        name.removeprefix("wf42m_r100_"): (
            c.projection_args["project_type"],
            c.projection_args.get("alpha"),
            c.projection_args["scale"],
            c.margin_update.initial_margin,
        )
        for name, c in family.items()
    }
    assert losses == {
        "qmargin": ("q_margin", 1.25, 35, 0.2),
        "arcface": ("arc_margin", None, 64, 0.5),
        "cosface": ("add_margin", None, 64, 0.5),
        "entmax": ("entmax", 1.25, 64, 0.5),
        "sparsemax": ("sparsemax", None, 1.9, 0.2),
    }
    assert not any(c.margin_update.update_margin for c in family.values())


def test_all_problems_are_named_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "exp_dir: x\nprojection_args: {project_type: softmax}\nmodel: ResNet34\n"
        "dataset_args: {image_siz: 48, channels: 2}\nmodel_args: {feat_dim: 80}\n"
    )
    with pytest.raises(InputError) as caught:
        load(path)
    for part in (
        "dataset_args.image_siz: unknown key; did you mean 'image_size'?",
        "dataset_args.channels: input should be 1 or 3, found 2",
        "model: ResNet34 takes features, and images are given to it here; did you mean 'IResNet34'",
        "model_args.feat_dim: unknown key",
    ):
        assert part in str(caught.value)


def test_the_network_takes_what_the_dataset_gives():
    path = ROOT / "examples/face/conf/mini_qmargin.yaml"
    net = build_face_net(load(path, "dataset_args.channels=1", "dataset_args.image_size=32", "model_args.width=4"))
    assert net.image_shape == (1, 32, 32)
    with pytest.raises(InputError, match="image_size must be a multiple of 16, such as 48 or 112, found 40"):
        load(path, "dataset_args.image_size=40")


def test_faces_have_no_speeds_to_leave_out():
    with pytest.raises(InputError, match="head_init: input should be 'keep' or 'reinit', found 'unperturbed'"):
        load(ROOT / "examples/face/conf/mini_qmargin.yaml", "head_init=unperturbed")
