from pathlib import Path

import pytest
import yaml

from wespeaker.config import TrainConfig, load_config
from wespeaker.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "conf").glob("*.yaml"))
VARYING = {"exp_dir", "projection_args", "margin_update"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_its_folder_is_named_after_it(path):
    config = load_config(path)
    assert config.exp_dir == f"exp/{path.stem}"
    assert load_config_from_dump(config) == config


def load_config_from_dump(config):
    return type(config)(**yaml.safe_load(config.dump()))


@pytest.mark.parametrize("family", ["mini", "resnet34"])
def test_a_family_differs_only_in_loss_and_margin(family):
    members = [load_config(path).model_dump() for path in CONFIGS if path.stem.split("_")[0] == family]
    assert len(members) > 2
    for member in members[1:]:
        assert {key for key in member if member[key] != members[0][key]} <= VARYING


def test_the_paper_recipe_is_to_the_letter():
    """Section 5.2 of the paper, and Table 5 for the losses."""
    config = load_config(ROOT / "conf" / "resnet34_qmargin.yaml")
    assert (config.model, config.model_args.m_channels) == ("ResNet34", 32)
    assert config.num_epochs == 150
    assert config.num_avg == 10
    assert (config.dataset_args.num_frms, config.dataset_args.fbank_args.num_mel_bins) == (200, 80)
    assert config.dataset_args.speed_perturb
    assert config.optimizer == "SGD"
    assert (config.optimizer_args["momentum"], config.optimizer_args["weight_decay"]) == (0.9, 1e-4)
    schedule = config.scheduler_args
    assert (schedule.initial_lr, schedule.final_lr, schedule.warm_up_epoch) == (0.1, 5e-5, 6)
    margin = config.margin_update
    assert (margin.initial_margin, margin.increase_start_epoch, margin.fix_start_epoch) == (0, 20, 40)
    assert margin.increase_type == "exp"
    assert config.dataloader_args.batch_size == 128
    losses = {path.stem: load_config(path) for path in CONFIGS}
    assert {
        name: (c.projection_args.get("alpha"), c.projection_args["scale"], c.margin_update.final_margin)
        for name, c in losses.items()
        if name.startswith("resnet34")
    } == {
        "resnet34_qmargin": (1.5, 10, 0.1),
        "resnet34_qmargin_a175": (1.75, 5, 0.1),
        "resnet34_arcface": (None, 32, 0.2),
        "resnet34_cosface": (None, 32, 0.2),
        "resnet34_entmax": (2.0, 5, 0.1),
        "resnet34_entmax_a175": (1.75, 5, 0.1),
        "resnet34_sparsemax": (None, 5, 0.1),  # from here on not in the table: the same setting by another name,
        "resnet34_a3m": (1.75, 5, 0.1),  # EntMax's,
        "resnet34_adaface": (1.0, 64, 0.4),  # its authors',
        "resnet34_adaptive_qmargin": (1.5, 10, 0.1),  # and Q-Margin's
    }
    adaptive = losses["resnet34_adaptive_qmargin"].projection_args
    assert (adaptive["project_type"], adaptive["place"]) == ("ada_margin", "log_q")


@pytest.mark.parametrize("family", ["mini", "resnet34"])
def test_prototypes_are_turned_when_the_margin_is_final(family):
    config = load_config(ROOT / "conf" / f"{family}_a3m.yaml")
    assert config.projection_args["reinit_epoch"] == config.margin_update.fix_start_epoch


@pytest.mark.parametrize("family", ["mini", "resnet34"])
def test_a_family_holds_every_kind_of_loss(family):
    kinds = {"qmargin", "qmargin_a175", "arcface", "cosface", "entmax_a175"}
    kinds |= {"sparsemax", "a3m", "adaface", "adaptive_qmargin"}
    assert {f"{family}_{kind}" for kind in kinds} <= {path.stem for path in CONFIGS}


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_all_problems_are_named_at_once_with_the_nearest_key(tmp_path):
    path = write(
        tmp_path,
        """
exp_dir: exp/x
num_epoch: 3
num_avg: many
dataset_args: {nm_frms: 200, aug_prob: 1.5}
model: ResNet35
projection_args: {project_type: arcmargin}
optimizer_args: {momentun: 0.9}
""",
    )
    with pytest.raises(InputError) as caught:
        load_config(path)
    message = str(caught.value)
    for part in (
        str(path),
        "num_epoch: unknown key; did you mean 'num_epochs'",
        "num_avg: input should be a valid integer",
        "dataset_args.nm_frms: unknown key; did you mean 'num_frms'",
        "dataset_args.aug_prob: input should be less than or equal to 1, found 1.5",
        "unknown model 'ResNet35'; did you mean 'ResNet",
        "  projection_args: project_type 'arcmargin' is not known; did you mean 'arc_margin'",
        "optimizer_args: momentun: unknown key; did you mean 'momentum'",
    ):
        assert part in message


def test_numbers_like_1e_4_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-4 as a string; the toolkit whose configs users bring does, too."""
    path = write(tmp_path, "exp_dir: x\nprojection_args: {project_type: softmax}\nscheduler_args: {final_lr: 1e-4}\n")
    assert load_config(path).scheduler_args.final_lr == 1e-4


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must be a mapping"),
        ("a: [1", "not valid YAML"),
        ("exp_dir: a\nexp_dir: b\n", "'exp_dir' is given twice"),
        ("exp_dir: a\n", "projection_args: is required"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        load_config(write(tmp_path, text))


def test_a_missing_file_names_itself():
    with pytest.raises(InputError, match=r"conf/nothing\.yaml .* does not exist"):
        load_config("conf/nothing.yaml")


def test_overrides_reach_nested_keys_and_are_checked():
    path = ROOT / "conf" / "mini_qmargin.yaml"
    config = load_config(path, ["num_epochs=20", "dataset_args.fbank_args.dither=0"])
    assert (config.num_epochs, config.dataset_args.fbank_args.dither) == (20, 0.0)
    for item, match in (
        ("num_epochs", "must look like"),
        ("model.x=1", "is a value"),
        ("num_epochs=0", "greater than 0"),
    ):
        with pytest.raises(InputError, match=match):
            load_config(path, [item])


@pytest.mark.parametrize(
    ("item", "match"),
    [
        ("model_args.feat_dim=40", "must equal dataset_args.fbank_args.num_mel_bins"),
        ("num_avg=1000", "must not exceed num_epochs"),
        ("scheduler_args.warm_up_epoch=1000", "must not exceed num_epochs"),
        ("margin_update.fix_start_epoch=1", "must not come before"),
        ("optimizer_args={momentum: 2.0}", "less than or equal to 1"),
        ("scheduler=StepDecreese", "unknown scheduler 'StepDecreese'; did you mean 'StepDecrease'"),
        ("scheduler=StepDecrease", "scheduler_args: milestones: is required; final_lr: unknown key"),
        ("scheduler_args=3", "scheduler_args: must be a mapping of keys to values, found 3"),
        ("precision=fp8", "precision: input should be 'float32', 'bf16' or 'fp16'"),
        ("projection_args={project_type: sphere}", "margin_update.initial_margin: margin must be a factor on the"),
        ("projection_args={project_type: arc_margn}", "did you mean 'arc_margin'"),
    ],
)
def test_values_are_checked_against_each_other(item, match):
    with pytest.raises(InputError, match=match):
        load_config(ROOT / "conf" / "resnet34_qmargin.yaml", [item])


def test_a_schedule_has_keys_of_its_own(tmp_path):
    base = "exp_dir: x\nprojection_args: {project_type: softmax}\n"
    args = load_config(write(tmp_path, base + "scheduler: StepDecrease\nscheduler_args: {milestones: [7, 13]}\n"))
    assert (args.scheduler_args.milestones, args.scheduler_args.gamma) == ([7.0, 13.0], 0.1)
    assert load_config_from_dump(args) == args
    with pytest.raises(InputError, match=r"scheduler_args: milestones: must ascend, found \[13.0, 7.0\]"):
        load_config(write(tmp_path, base + "scheduler: StepDecrease\nscheduler_args: {milestones: [13, 7]}\n"))


def test_a_task_of_another_kind_shares_the_keys_of_training(tmp_path):
    class OtherConfig(TrainConfig):
        image_size: int = 112

    text = "exp_dir: x\nprojection_args: {project_type: softmax}\nimage_size: 48\n"
    config = load_config(write(tmp_path, text), ["num_epochs=12"], schema=OtherConfig)
    assert (config.image_size, config.num_epochs, config.save_minutes) == (48, 12, 30)
    with pytest.raises(InputError, match="dataset_args: unknown key"):
        load_config(write(tmp_path, text), ["dataset_args={}"], schema=OtherConfig)
