import math
from pathlib import Path

import pytest
import yaml

from wespeaker.config import ECAPAArgs, ResNetArgs, TrainConfig, XVECArgs, load_config
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


def family_of(path):
    """Such as mini, or mini_lm of its fine-tuning."""
    return path.stem.partition("_")[0] + ("_lm" if "_lm_" in path.stem else "")


@pytest.mark.parametrize("family", ["mini", "resnet34", "mini_lm", "resnet34_lm"])
def test_a_family_differs_only_in_loss_and_margin(family):
    first = load_config(ROOT / "conf" / f"{family}_qmargin.yaml")
    members = [load_config(path) for path in CONFIGS if family_of(path) == family]
    members = [member for member in members if member.model == first.model]
    assert len(members) > 1
    for member in members:
        assert differing(member, first) <= VARYING


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("mini_ecapa_qmargin", "mini_qmargin"),
        ("mini_campplus_qmargin", "mini_qmargin"),
        ("mini_xvec_qmargin", "mini_qmargin"),
        ("ecapa_tdnn_qmargin", "resnet34_qmargin"),
        ("campplus_qmargin", "resnet34_qmargin"),
    ],
)
def test_another_backbone_differs_only_in_the_model(name, reference):
    config, first = (load_config(ROOT / "conf" / f"{stem}.yaml") for stem in (name, reference))
    assert differing(config, first) == {"exp_dir", "model", "model_args"}


@pytest.mark.parametrize("path", [path for path in CONFIGS if "_lm_" in path.stem], ids=lambda path: path.stem)
def test_fine_tuning_goes_on_with_the_network_and_loss_of_its_run(path):
    """With a larger margin from the first step on, at a smaller rate, on longer crops at one speed."""
    config, base = load_config(path), load_config(path.with_name(path.name.replace("_lm_", "_")))
    assert not differing(config, base) & {
        "model",
        "model_args",
        "projection_args",
        "optimizer",
        "optimizer_args",
        "seed",
    }
    assert (config.head_init, config.model_init) == ("unperturbed", None)
    assert config.margin_update.final_margin > base.margin_update.final_margin
    assert (config.margin_update.increase_start_epoch, config.margin_update.fix_start_epoch) == (1, 1)
    assert config.scheduler_args.initial_lr < 0.1 * base.scheduler_args.initial_lr
    assert config.num_epochs < 0.2 * base.num_epochs
    assert config.dataset_args.num_frms > base.dataset_args.num_frms
    assert not config.dataset_args.speed_perturb


def test_wespeakers_fine_tuning_is_to_the_letter():
    """The values of resnet_lm.yaml of its VoxCeleb recipe; it means to leave speed perturbation out, and does not."""
    config = load_config(ROOT / "conf" / "resnet34_lm_arcface.yaml")
    schedule = config.scheduler_args
    assert (config.num_epochs, config.num_avg, config.dataloader_args.batch_size) == (5, 1, 64)
    assert (config.dataset_args.num_frms, config.dataset_args.aug_prob) == (600, 0.6)
    assert (schedule.initial_lr, schedule.final_lr, schedule.warm_up_epoch) == (1e-4, 2.5e-5, 1)
    assert (config.projection_args["scale"], config.margin_update.final_margin) == (32, 0.5)


def differing(config, other):
    values, others = config.model_dump(), other.model_dump()
    return {key for key in values if values[key] != others[key]}


def test_the_arguments_of_a_model_are_those_that_it_has():
    path = ROOT / "conf" / "ecapa_tdnn_qmargin.yaml"
    assert load_config(path).model_args == ECAPAArgs(embed_dim=192, pooling_func="ASTP")
    width = load_config(path, ["model=ECAPA_TDNN", "model_args.channels=64"]).model_args
    assert (width.channels, width.out_channels, width.global_context_att) == (64, 1536, False)
    for overrides, match in (
        (["model_args.chanels=64"], r"model_args: chanels: unknown key; valid names: emb_bn, embed_dim, feat_dim"),
        (["model=ECAPA_TDNN", "model_args.chanels=64"], "model_args: chanels: unknown key; did you mean 'channels'"),
        (["model=ECAPA_TDNN", "model_args.channels=60"], "model_args: channels: input should be a multiple of 8"),
        (["model=ResNet34"], "model_args: emb_bn: unknown key; valid names: embed_dim, feat_dim, m_channels"),
        (["model_args.pooling_func=ASP"], "model_args: pooling_func: input should be 'TAP', 'TSDP', 'TSTP' or 'ASTP'"),
        (["model_args=8"], "model_args: must be a mapping of keys to values, found 8"),
    ):
        with pytest.raises(InputError, match=match):
            load_config(path, overrides)


def test_the_defaults_of_model_args_are_the_models(tmp_path):
    text = "exp_dir: x\nprojection_args: {project_type: softmax}\n"
    assert load_config(write(tmp_path, text)).model_args == ResNetArgs()
    assert load_config(write(tmp_path, text + "model: XVEC\n")).model_args == XVECArgs()


def test_an_unknown_model_is_not_blamed_on_its_arguments(tmp_path):
    text = "exp_dir: x\nprojection_args: {project_type: softmax}\nmodel: XVECT\nmodel_args: {hid_dim: 64}\n"
    with pytest.raises(InputError, match=r"unknown model 'XVECT'; did you mean 'XVEC'\?$"):
        load_config(write(tmp_path, text))


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
        if name.startswith("resnet34") and "_lm_" not in name
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


def test_all_problems_of_all_sections_and_overrides_are_named_at_once(tmp_path):
    path = write(
        tmp_path,
        """
exp_dir: exp/x
dataset_args: {fbank_args: {num_mel_bin: 80}, spec_aug_args: {prob: 2}, filter_arg: {}}
model_args: {embed_dims: 64, m_channels: 0}
projection_args: {project_type: q_margin, alfa: 1.5, scale: -1}
margin_update: {final_margin: -0.1, increase_start_epoch: 9, fix_start: 12}
optimizer_args: {momentum: 2, weight_deca: 0}
scheduler_args: {inital_lr: 1, scale_ratio: automatic}
""",
    )
    with pytest.raises(InputError) as caught:
        load_config(path, ["num_epoch=3", "dataset_args.aug_probs=1", "num_avg", "seed=[", "exp_dir.x=1"])
    message = str(caught.value)
    for part in (
        "dataset_args.fbank_args.num_mel_bin: unknown key; did you mean 'num_mel_bins'",
        "dataset_args.spec_aug_args.prob: input should be less than or equal to 1, found 2",
        "dataset_args.filter_arg: unknown key; did you mean 'filter_args'",
        "model_args: m_channels: input should be greater than 0, found 0; "
        "embed_dims: unknown key; did you mean 'embed_dim'",
        "projection_args: 'alfa' is not a key of q_margin; did you mean 'alpha'?; scale must be above 0; found -1",
        "margin_update.final_margin: input should be greater than or equal to 0, found -0.1",
        "margin_update.fix_start: unknown key; did you mean 'fix_start_epoch'",
        "optimizer_args: momentum: input should be less than or equal to 1, found 2; "
        "weight_deca: unknown key; did you mean 'weight_decay'",
        "scheduler_args: scale_ratio: must be auto or a number above 0, found 'automatic'; "
        "inital_lr: unknown key; did you mean 'initial_lr'",
        "num_epoch: unknown key; did you mean 'num_epochs'",
        "dataset_args.aug_probs: unknown key; did you mean 'aug_prob'",
        "override 'num_avg' must look like section.key=value",
        "override 'seed=[': '[' is not valid YAML",
        "override 'exp_dir.x=1': exp_dir is a value, not a section",
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
        ("exp_dir: &a x\nmodel: *a\n", r"aliases \(\*name\) are not read"),
        ("exp_dir: a\n1: b\n", "1: keys should be strings"),
        ("exp_dir: a\noptimizer_args: {1: 2}\n", "optimizer_args: 1: keys should be strings"),
        ("exp_dir: [" + "x, " * 9999 + "]\n", r"a valid string, found \['x'[x', ]{190,200}\n"),
        ("exp_dir: a\nseed: 2024-13-01\n", "not valid YAML: ValueError"),
        ("exp_dir: a\nseed: 0x" + "f" * 9999, "more than 100 digits"),
        ("[" * 5000, "not valid YAML: RecursionError"),
        ("exp_dir: a\n", "projection_args: is required"),
        ("1: a\n", "1: keys should be strings, found 1"),
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
        ("dataset_args.resample_rate=16", "greater than or equal to 1000, found 16"),
        ("dataset_args.fbank_args.frame_length=1.0e+9", "less than or equal to 1000, found"),
        ("precision=fp8", "precision: input should be 'float32', 'bf16' or 'fp16'"),
        ("projection_args={project_type: sphere}", "margin_update.initial_margin: margin must be a factor on the"),
        ("projection_args={project_type: arc_margn}", "did you mean 'arc_margin'"),
    ],
)
def test_values_are_checked_against_each_other(item, match):
    with pytest.raises(InputError, match=match):
        load_config(ROOT / "conf" / "resnet34_qmargin.yaml", [item])


def test_a_final_gap_is_a_margin(tmp_path):
    base = "exp_dir: x\nprojection_args: {project_type: q_margin, alpha: 1.5, scale: 10}\n"
    config = load_config(write(tmp_path, base + "margin_update: {final_gap: 1.0}\n"))
    assert config.margin_update.final == pytest.approx(math.log(5) / 5)  # e^{5 m} / 5 = 1
    assert load_config_from_dump(config) == config
    assert f"final_margin: {config.margin_update.final_margin}" in config.dump()


@pytest.mark.parametrize(
    ("loss", "update", "match"),
    [
        ("q_margin", "final_gap: 2.0", r"margin_update.final_gap: input should be less than 2, found 2.0"),
        ("q_margin", "final_gap: 0", r"margin_update.final_gap: input should be greater than 0, found 0"),
        ("q_margin", "final_gap: 0.1", "final_gap: a gap of 0.1 is below the 0.2 that alpha 1.5 and scale 10 ask for"),
        (
            "q_margin",
            "final_gap: 1, final_margin: 0.2",
            r"\(1\) is a final_margin of 0.3219 .* is 0.2; give one of the",
        ),
        ("q_margin", "final_gap: 1, update_margin: false", "final_gap needs update_margin: true"),
        (
            "arc_margin",
            "final_gap: 1",
            "final_gap: arc_margin with alpha 1 never has a loss of zero.* give final_margin",
        ),
        ("kappa", "final_gap: 1", "final_gap: kappa with alpha 1 never has a loss of zero"),
        ("softmax", "final_gap: 1", "final_gap: softmax with alpha 1 never has a loss of zero"),
        ("a3m", "final_gap: 1", "final_gap: the margin of a3m is not in the reference measure .* give final_margin"),
        ("entmax", "final_gap: 1", "final_gap: the margin of entmax is not in the reference measure"),
        ("nothing", "final_gap: 1", "project_type 'nothing' is not known; valid names: [^;]*$"),
    ],
)
def test_a_final_gap_that_no_margin_has(tmp_path, loss, update, match):
    text = f"exp_dir: x\nprojection_args: {{project_type: {loss}}}\nmargin_update: {{{update}}}\n"
    with pytest.raises(InputError, match=match):
        load_config(write(tmp_path, text))


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
