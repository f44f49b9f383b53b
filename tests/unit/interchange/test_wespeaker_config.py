"""WeSpeaker's configs: what is taken, translated, idle and refused; ours are read as ever."""

import logging
import math

import pytest
import torch
import yaml
from conftest import ROOT
from torch.nn import functional as F
from wespeakers import RECIPE, merged, recipe, saved

from wespeaker.config import load_config, read_document
from wespeaker.errors import InputError
from wespeaker.face_config import FaceConfig
from wespeaker.interchange.config import MARKS, is_wespeakers, translate
from wespeaker.losses import build_head
from wespeaker.train.schedules import learning_rate, scale_ratio

LOGGER = "wespeaker.interchange.config"


@pytest.fixture
def load(tmp_path):
    def load(document, overrides=()):
        path = tmp_path / "theirs.yaml"
        path.write_text(yaml.safe_dump(document))
        return load_config(path, overrides)

    return load


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.INFO, logger=LOGGER)
    return lambda: [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno == logging.WARNING]


def test_every_key_with_the_same_meaning_is_taken(load):
    """All that the document gives is in the config, value by value, but for the keys named here."""
    idle = {"gpus", "enable_amp", "loss", "loss_args"}
    idle_data = {"sample_num_per_epoch", "shuffle", "shuffle_args", "filter_args", "frontend"}
    config = load(recipe()).model_dump()
    for key, value in RECIPE.items():
        if isinstance(value, dict) and key not in idle:
            same = {k: v for k, v in value.items() if k not in (idle_data if key == "dataset_args" else ())}
            same = {k: v for k, v in same.items() if not isinstance(v, dict)}
            assert {k: config[key][k] for k in same} == same
        elif key not in idle:
            assert config[key] == value
    for key in ("fbank_args", "spec_aug_args"):
        assert config["dataset_args"][key] == RECIPE["dataset_args"][key]
    assert config["dataset_args"]["filter_args"] == {"min_num_frames": 90}
    assert config["scheduler_args"]["scale_ratio"] == "auto"
    assert config["precision"] == "float32"


def test_what_training_saves_is_the_same_experiment(load):
    assert load(saved()) == load(recipe())


def test_each_key_without_meaning_is_one_warning(load, warnings):
    load(recipe(do_lm=False))
    first = [
        *("gpus", "enable_amp", "do_lm", "loss", "loss_args", "dataset_args.sample_num_per_epoch"),
        *("dataset_args.shuffle", "dataset_args.shuffle_args", "dataset_args.filter_args.max_num_frames"),
        "dataset_args.frontend",
    ]
    assert sorted(text.split(" has no meaning here: ")[0] for text in warnings()) == sorted(first)
    assert any(text == "gpus has no meaning here: run.sh --gpus or --nproc says where to train" for text in warnings())


def test_every_key_is_accounted_for_once():
    notes = translate(saved(do_lm=True)).notes
    keys = [note.key for note in notes]
    assert len(keys) == len(set(keys))
    given = {name for name in _names(saved(do_lm=True)) if name != "dataset_args.shuffle_args.shuffle_size"}
    assert given | {"dataset_args.shuffle_args"} == {note.key for note in notes if note.fate != "ours"}


def _names(document, prefix=""):
    for key, value in document.items():
        yield from _names(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]


def test_our_choices_are_named_with_the_keys_that_undo_them(load):
    document = recipe()
    del document["dataloader_args"]["drop_last"]
    ours = {note.key for note in translate(document).of("ours")}
    assert ours == {
        *("dataset_args.snr_power_floor", "dataset_args.align_direct_path", "dataset_args.peak_normalise"),
        "dataloader_args.drop_last",
    }
    theirs = "dataset_args.snr_power_floor=1.0e-4 dataset_args.align_direct_path=false dataset_args.peak_normalise=true"
    config = load(document, [*theirs.split(), "dataloader_args.drop_last=true"])
    assert (config.dataset_args.snr_power_floor, config.dataset_args.peak_normalise) == (1e-4, True)
    assert load(recipe()).dataloader_args.drop_last  # given there, and of the same meaning


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_ours_are_not_taken_for_theirs(path, warnings):
    assert not is_wespeakers(read_document(path))
    load_config(path)
    assert not warnings()


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_one_of_their_keys_in_ours_is_an_unknown_key(mark, load):
    ours = yaml.safe_load((ROOT / "conf" / "mini_qmargin.yaml").read_text())
    with pytest.raises(InputError, match=f"{mark}: unknown key; "):
        load({**ours, mark: 1})


def test_a_wrong_key_in_theirs_is_an_error_with_the_nearest_name(load):
    with pytest.raises(InputError, match=r"dataset_args\.num_frm: unknown key; did you mean 'num_frms'"):
        load(recipe(dataset_args={"num_frm": 200}))


def test_faces_have_no_such_configs(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe()))
    with pytest.raises(InputError, match="gpus: unknown key"):
        load_config(tmp_path / "c.yaml", schema=FaceConfig)


def test_half_precision(load):
    assert load(recipe(enable_amp=True)).precision == "fp16"
    assert load(recipe(), ["precision=bf16"]).precision == "bf16"
    with pytest.raises(InputError, match="enable_amp: must be true or false, found 'maybe'"):
        load(recipe(enable_amp="maybe"))


def test_initial_weights_come_without_prototypes_and_a_first_checkpoint_with_them(load, warnings):
    """model_init is loaded before the projection is there; fine-tuning starts from all of models/model_0.pt."""
    config = load(recipe(model_init="exp/a/models/avg_model.pt"))
    assert (config.model_init, config.head_init) == ("exp/a/models/avg_model.pt", "reinit")
    config = load(saved(do_lm=True, checkpoint="exp/a-LM/models/model_0.pt"))
    assert (config.model_init, config.head_init) == ("exp/a-LM/models/model_0.pt", "keep")
    assert load(saved(checkpoint="exp/a/models/model_12.pt")).model_init is None
    assert "checkpoint has no meaning here: a run goes on in its folder by itself" in " ".join(warnings())


def test_fine_tuning_says_what_speed_perturb_hides(load, warnings):
    load(saved(do_lm=True, dataset_args={"speed_perturb": False}))
    assert "give dataset_args.speed_perturb=true if the prototypes are to be kept" in " ".join(warnings())


def test_fine_tuning_from_nowhere_is_warned_of(load, warnings):
    load(saved(do_lm=True, model_init="exp/a/models/avg_model.pt"))
    assert "the weights are random" not in " ".join(warnings())
    load(recipe(do_lm=True))
    assert "give model_init=BASE/models/avg_model.pt" in " ".join(warnings())


def test_no_noise_means_no_augmentation(load):
    assert load(saved(noise_data=None)).dataset_args.aug_prob == 0
    assert load(saved()).dataset_args.aug_prob == 0.55


def test_what_is_left_out_has_the_defaults_of_torch_and_of_theirs(load):
    document = merged(RECIPE, {})
    document["optimizer_args"] = {}
    del document["scheduler_args"]["warm_from_zero"]
    config = load(document)
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)]).defaults
    assert config.optimizer_args == {key: sgd[key] for key in ("momentum", "nesterov", "weight_decay")}
    assert not config.scheduler_args.warm_from_zero


@pytest.mark.parametrize("given", [3.0, None])
def test_rates_are_those_of_their_schedule(given, load):
    """c lr0 exp(t/T ln(lrF/lr0)), c rising from 0 to processes x batch / 64, whatever scale_ratio the document has."""
    config = load(recipe(scheduler_args={} if given is None else {"scale_ratio": given}))
    args, steps, processes = config.scheduler_args, 100, 2
    scale = scale_ratio(args, world_size=processes, batch_size=config.dataloader_args.batch_size)
    for step in (0, 150, 400, 1234, 2999):
        coefficient = processes * 96 / 64 * min(1.0, step / (4 * steps))
        expected = coefficient * 0.2 * math.exp(step / (30 * steps) * math.log(0.0001 / 0.2))
        found = learning_rate(step, args, steps_per_epoch=steps, num_epochs=config.num_epochs, scale=scale)
        assert found == pytest.approx(expected, rel=1e-12)


def cosines_of(head, embeddings):
    return F.normalize(embeddings.double()) @ F.normalize(head.weight.double()).T


def test_sphereface2_is_their_loss(load):
    """WeSpeaker's sum over classes, its scale not divided out, with the bias where it starts there."""
    args = {"project_type": "sphereface2", "scale": 24.0, "t": 2, "lanbuda": 0.6, "margin_type": "C"}
    config = load(recipe(projection_args=args))
    torch.manual_seed(0)
    head = build_head(config.projection_args, embed_dim=8, num_classes=11)
    embeddings, labels = torch.randn(5, 8), torch.tensor([0, 3, 3, 10, 7])
    head.update(margin=0.15)
    with torch.no_grad():
        head.bias.zero_()
    spread = 2 * ((cosines_of(head, embeddings) + 1) / 2) ** 2 - 1
    yes, no = F.softplus(-24 * (spread - 0.15)), F.softplus(24 * (spread + 0.15))
    is_label = F.one_hot(labels, 11).double()
    expected = (is_label * 0.6 * yes + (1 - is_label) * 0.4 * no).sum(1).mean()
    assert head(embeddings, labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("do_lm", [False, True])
def test_the_penalty_on_near_negatives_goes_with_fine_tuning(do_lm, load):
    """Sub-centres with the margin alone, where do_lm; otherwise the two nearest negatives are mp nearer."""
    args = {"project_type": "arc_margin_intertopk_subcenter", "scale": 20.0, "K": 2, "mp": 0.1, "k_top": 2}
    config = load(recipe(do_lm=do_lm, projection_args=args))
    torch.manual_seed(0)
    head = build_head(config.projection_args, embed_dim=8, num_classes=6)
    embeddings, labels = torch.randn(4, 8), torch.tensor([0, 5, 2, 2])
    head.update(margin=0.2)
    cosines = cosines_of(head, embeddings).reshape(4, 6, 2).max(2).values
    logits = cosines.clone()
    for row, label in enumerate(labels):
        logits[row, label] = torch.cos(cosines[row, label].acos() + 0.2)
        others = [j for j in cosines[row].argsort(descending=True).tolist() if j != label]
        for j in [] if do_lm else others[:2]:
            logits[row, j] = torch.cos(cosines[row, j].acos() - 0.1)
    expected = F.cross_entropy(20 * logits, labels)
    assert head(embeddings, labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"dataset_args": {"sample_num_per_epoch": 5000}},
            r"sample_num_per_epoch: 5000 is not possible here",
        ),
        ({"dataset_args": {"shuffle": False}}, r"shuffle: False is not possible here: utterances always"),
        ({"dataset_args": {"speed_perturb_mode": "expanded"}}, r"speed_perturb_mode: 'expanded' is not possible here"),
        ({"dataset_args": {"frontend": "s3prl"}}, r"frontend: 's3prl' is not possible here: fbank is the only"),
        ({"dataset_args": {"cmvn": False}}, r"cmvn: False is not possible here: the mean over time"),
        ({"dataset_args": {"cmvn_args": {"norm_var": True}}}, r"cmvn_args: {'norm_var': True} is not possible here"),
        ({"dataset_args": {"filter_args": {"max_num_frames": 150}}}, r"num_frms: WeSpeaker cuts .* to 150 frames"),
        ({"dataset_args": {"num_frms": 900, "filter_args": None}}, r"num_frms: WeSpeaker cuts utterances to 800"),
        ({"data_type": "feat"}, r"data_type: feat is not read here; train on audio"),
        ({"loss": "MSELoss"}, r"loss: must be CrossEntropyLoss, found 'MSELoss'"),
        ({"loss_args": {"label_smoothing": 0.1}}, r"loss_args: must be empty, found {'label_smoothing': 0\.1}"),
        ({"optimizer": "Adam"}, r"optimizer: unknown optimizer 'Adam'; did you mean 'AdamW'"),
        ({"scheduler": "TriAngular2"}, r"unknown scheduler 'TriAngular2'; valid names: ExponentialDecrease"),
        ({"model": "ERes2Net34"}, r"unknown model 'ERes2Net34'"),
        ({"model_args": {"pooling_func": "MQMHASTP"}}, r"pooling_func: input should be 'TAP', .* found 'MQMHASTP'"),
        ({"model": "CAMPPlus", "model_args": {"config_str": "prelu"}}, r"config_str: must be batchnorm-relu"),
        ({"projection_args": {"project_type": "softmax"}}, r"project_type: softmax: WeSpeaker's normalises and"),
        ({"projection_args": {"project_type": "sphere"}}, r"project_type: sphere: WeSpeaker's is the A-Softmax"),
        ({"projection_args": {"project_type": "ham_margin"}}, r"project_type 'ham_margin' is not known"),
        ({"projection_args": {"project_type": "sphereface2", "margin_type": "A"}}, r"margin_type: 'A' is not here"),
        ({"margin_scheduler": "CosineMargin"}, r"margin_scheduler: input should be 'MarginScheduler'"),
    ],
)
def test_what_cannot_be_honoured_is_a_sentence(changes, match, load):
    with pytest.raises(InputError, match=match):
        load(recipe(**changes))


def test_all_that_cannot_be_honoured_is_named_at_once(load):
    with pytest.raises(InputError) as error:
        load(recipe(loss="MSELoss", num_avg=99, dataset_args={"frontend": "whisper_encoder"}))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        *("loss", "dataset_args.frontend", "num_avg (99) must not exceed num_epochs (30)"),
    ]


def test_overrides_are_keys_of_ours_and_settle_what_is_refused(load):
    document = recipe(
        projection_args={"project_type": "softmax"}, dataset_args={"filter_args": {"max_num_frames": 150}}
    )
    overrides = ["projection_args.project_type=q_margin", "projection_args.alpha=1.75", "dataset_args.num_frms=140"]
    config = load(document, overrides)
    assert (config.projection_args["project_type"], config.projection_args["alpha"]) == ("q_margin", 1.75)
    with pytest.raises(InputError, match="WeSpeaker cuts utterances to 150"):
        load(document, overrides[:2])
    with pytest.raises(InputError, match="gpus: unknown key"):
        load(recipe(), ["gpus=[0]"])


def test_a_loss_of_ours_may_stand_in_their_document(load):
    args = {"project_type": "q_margin", "alpha": 1.5}
    document = recipe()
    document["projection_args"] = args
    assert load(document).projection_args["alpha"] == 1.5
