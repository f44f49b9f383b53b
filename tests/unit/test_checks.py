"""Values that do not go together: what is refused, what is warned of, and that the advice is good."""

import math
import re

import pytest
import torch
from conftest import ROOT

from wespeaker import checks
from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.losses import PROJECT_TYPES, build_head
from wespeaker.models import MODELS, build_model, min_frames

PAPER = ROOT / "conf" / "resnet34_qmargin.yaml"


def load(*overrides, path=PAPER):
    return load_config(path, overrides)


def doubts(*overrides, device="cuda"):
    return load(*overrides).doubts(device=device)


def q_margin(alpha, scale, margin):
    loss = f"projection_args={{project_type: q_margin, alpha: {alpha}, scale: {scale}}}"
    return (loss, f"margin_update.final_margin={margin}")


# The zero-loss gap


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_ready_config_is_doubtful(path):
    assert load_config(path).doubts(device="cuda") == []


@pytest.mark.parametrize("place", ["logit", "log_q"])
@pytest.mark.parametrize("name", PROJECT_TYPES)
def test_the_gap_without_a_head_is_the_head_s(name, place):
    kind = PROJECT_TYPES[name]
    args = {"project_type": name, **({"alpha": 1.5} if "alpha" in kind.defaults else {})}
    args |= {"place": place} if "place" in kind.defaults else {}
    margin = 1.2 if kind.place == "factor" else 0.1
    update = f"margin_update={{initial_margin: {margin}, final_margin: {margin}}}"
    config = load(f"projection_args={args}", update)
    head = build_head(config.projection_args, embed_dim=4, num_classes=3)
    assert checks.final_gap(config) == head.zero_loss_gap(margin)


@pytest.mark.parametrize(
    ("alpha", "scale", "margin", "gap"),
    [(1.25, 35, 0.2, 0.66), (1.25, 20, 0.2, 0.54), (1.5, 10, 0.2, 0.54), (1.5, 10, 0.1, 0.33), (1.75, 5, 0.1, 0.39)],
)
def test_good_settings_of_the_paper_are_not_doubtful(alpha, scale, margin, gap):
    config = load(*q_margin(alpha, scale, margin))
    assert checks.final_gap(config) == pytest.approx(gap, abs=0.005)
    assert config.doubts(device="cuda") == []


@pytest.mark.parametrize(("alpha", "scale", "margin", "gap"), [(1.5, 32, 0.2, "1.53"), (1.25, 10, 0.5, "1.4")])
def test_a_gap_that_hardly_a_sample_reaches_is_warned_of(alpha, scale, margin, gap):
    (doubt,) = doubts(*q_margin(alpha, scale, margin))
    assert f"margin_update.final_margin ({margin}) with alpha {alpha} and projection_args.scale ({scale})" in doubt
    assert f"a lead of {gap} before" in doubt
    assert "hardly a sample reaches" in doubt


@pytest.mark.parametrize(
    ("alpha", "scale", "margin", "gap"),
    [(1.25, 20, 0.5, "2.44"), (1.5, 10, 0.5, "2.44"), (1.25, 32, 0.5, "6.82"), (1.5, 32, 0.5, "186"), (3, 500, 3, "")],
)
def test_a_gap_that_no_sample_can_reach_is_refused(alpha, scale, margin, gap):
    with pytest.raises(InputError, match=rf"a lead of {gap}.* more than the 2 that there can be"):
        load(*q_margin(alpha, scale, margin))


@pytest.mark.parametrize(("alpha", "scale", "margin"), [(1.01, 32, 0.2), (1.001, 64, 0.4), (1.5, 1, 0.1)])
def test_a_loss_that_is_nearly_a_cross_entropy_is_warned_of_and_not_refused(alpha, scale, margin):
    """As alpha falls to 1 the loss becomes CosFace's, which is never zero and trains."""
    (doubt,) = doubts(*q_margin(alpha, scale, margin))
    assert "more than the 2 that there can be" in doubt


@pytest.mark.parametrize("update_margin", ["true", "false"])
@pytest.mark.parametrize(
    ("alpha", "scale", "margin"),
    [(1.5, 10, 0.5), (1.5, 1, 0.1), (1.5, 1, 0.5), (1.25, 10, 0.5), (1.5, 1.5, 0), (2, 90, 0.3)],
)
def test_every_change_that_is_advised_leads_to_a_good_gap(alpha, scale, margin, update_margin):
    key = "final_margin" if update_margin == "true" else "initial_margin"
    loss, _ = q_margin(alpha, scale, margin)
    bad = (loss, f"margin_update.{key}={margin}", f"margin_update.update_margin={update_margin}")
    try:
        (sentence,) = doubts(*bad)
    except InputError as error:
        sentence = str(error)
    advice = sentence.split(": give ")[1]
    remedies = advice.split(" or ")
    for remedy in remedies:
        changes = re.findall(r"(\w+\.\w+=\S+)", remedy)
        config = load(*bad, *changes)
        assert f"(a lead of {checks.final_gap(config):.2g})" in remedy
        assert checks.final_gap(config) < 0.72 or f"{key}=" not in remedy
        assert config.doubts(device="cuda") == []


def test_a_gap_that_is_asked_for_is_advised_on_as_a_gap():
    (doubt,) = doubts("margin_update={final_gap: 1.2}")
    assert doubt.startswith(
        "margin_update.final_gap (1.2) with alpha 1.5 and projection_args.scale (10) asks the label"
    )
    advice = doubt.split(": give ")[1].split(" or ")
    assert advice[0] == "margin_update.final_gap=0.7 (a lead of 0.7)"
    for remedy in advice:
        changes = re.findall(r"(\w+\.\w+=\S+)", remedy)
        assert doubts("margin_update={final_gap: 1.2}", *changes) == []


def test_a_margin_that_is_not_in_the_reference_measure_does_not_count():
    config = load("projection_args={project_type: entmax, alpha: 1.5, scale: 10}", "margin_update.final_margin=1.5")
    assert checks.final_gap(config) == 0.2
    (doubt,) = doubts("projection_args={project_type: sparsemax, scale: 0.7}")
    assert doubt.startswith("alpha 2 and projection_args.scale (0.7) asks the label's cosine for a lead of 1.43")
    assert math.isinf(checks.final_gap(load("projection_args={project_type: softmax}")))


# Other values


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("dataset_args.num_frms=8",), r"num_frms \(8\) must be at least 9, which ResNet34 needs"),
        (("model=XVEC", "model_args={}", "dataset_args.num_frms=15"), "at least 16, which XVEC needs"),
        (("dataloader_args.batch_size=1",), "batch_size must be at least 2: batch normalisation"),
        (("dataset_args.spec_aug=true", "dataset_args.spec_aug_args.max_t=200"), r"max_t \(200\) must be below"),
        (("dataset_args.spec_aug=true", "dataset_args.spec_aug_args.max_f=90"), r"max_f \(90\) must be below .*bins"),
        (("optimizer_args={momentum: 0}",), "optimizer_args: nesterov: true needs a momentum above 0"),
        (("scheduler_args.final_lr=0.2",), r"scheduler_args: final_lr \(0.2\) must not exceed initial_lr \(0.1\)"),
        (("projection_args.sample_rate=0.1",), "'sample_rate' has no meaning for q_margin; it is a key of softmax"),
    ],
)
def test_what_cannot_run_is_refused(overrides, match):
    with pytest.raises(InputError, match=match):
        load(*overrides)


def test_bands_that_are_not_drawn_may_be_of_any_width():
    load("dataset_args.spec_aug_args.max_t=999")
    load("dataset_args.spec_aug=true", "dataset_args.spec_aug_args={num_t_mask: 0, max_t: 999}")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("num_epochs=39",), r"final_margin \(0.1\) is never reached, for num_epochs \(39\) ends before .*\(40\)"),
        (("num_epochs=19",), r"the margin stays at margin_update.initial_margin \(0\)"),
        (("num_epochs=48",), r"last num_avg \(10\) epochs begins with epoch 39, when the margin still rises"),
        (("num_epochs=100", "scheduler=StepDecrease", "scheduler_args={milestones: [30, 100, 120]}"), "at .* 100, 120"),
        (("projection_args={project_type: a3m, reinit_epoch: 151}",), "prototypes are never re-initialised"),
        (("dataset_args.filter_args.min_num_frames=50",), "may repeat an utterance 4 times; give .*min_num_frames=100"),
        (("dataset_args.filter=false",), "any number of times; give .* and dataset_args.filter=true"),
        (("dataloader_args.batch_size=3",), "last batch may be of one utterance.*drop_last=true"),
    ],
)
def test_what_is_hardly_meant_is_warned_of(overrides, match):
    (doubt,) = doubts(*overrides)
    assert re.search(match, doubt)


@pytest.mark.parametrize(
    "overrides",
    [
        ("num_epochs=40", "num_avg=1"),
        ("num_epochs=49",),
        ("num_epochs=10", "margin_update.update_margin=false"),
        ("num_epochs=10", "margin_update.final_margin=0"),
        ("num_epochs=101", "scheduler=StepDecrease", "scheduler_args={milestones: [30, 100]}"),
        ("projection_args={project_type: a3m, reinit_epoch: 150}",),
        ("projection_args={project_type: a3m, reinit_epoch: 0}",),
        ("dataloader_args.batch_size=3", "dataloader_args.drop_last=true"),
        ("precision=bf16",),
    ],
)
def test_what_may_be_meant_is_not_warned_of(overrides):
    assert doubts(*overrides) == []


@pytest.mark.parametrize(("has_bf16", "slow"), [(True, {"fp16"}), (False, {"fp16", "bf16"})])
def test_half_precision_on_a_cpu_without_it_is_warned_of(monkeypatch, has_bf16, slow):
    monkeypatch.setattr(checks, "fast_bfloat16", lambda device: has_bf16)
    for precision in ("float32", "bf16", "fp16"):
        found = doubts(f"precision={precision}", device="cpu")
        assert len(found) == (precision in slow)
        assert all(f"does not compute {precision} in hardware" in doubt for doubt in found)
        assert doubts(f"precision={precision}", device="cuda") == []


@pytest.mark.parametrize("name", MODELS)
def test_the_shortest_input_of_a_model_is_known_without_it(name):
    with torch.device("meta"):
        model = build_model(name, feat_dim=80, embed_dim=8)
    assert min_frames(name) == model.min_frames
