"""WeSpeaker's models: their weights under its keys, its folders, and run folders made of them."""

import logging
import shutil

import numpy as np
import pytest
import torch
import torchaudio.compliance.kaldi as kaldi
from wespeakers import RESNET18, merged, resnet18_weights, saved, write_folder
from written_out import resnet

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.interchange.importing import read_model, write_model
from wespeaker.interchange.models import load_speaker_net
from wespeaker.losses import build_head
from wespeaker.models import build_model
from wespeaker.train.checkpoint import load, weights_of

EMBED_DIM, NUM_CLASSES = 16, 18
SIZE = {"feat_dim": 80, "embed_dim": EMBED_DIM}
FBANK = {"num_mel_bins": 80, "frame_length": 25, "frame_shift": 10, "dither": 1.0}


def document(**changes):
    args = {"model": "ResNet18", "model_args": SIZE, "dataset_args": {"fbank_args": FBANK}}
    return merged(saved(**args), changes)


@pytest.fixture
def folder(tmp_path):
    weights = resnet18_weights(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES)
    return write_folder(tmp_path / "published", document(), weights)


@pytest.mark.parametrize("two", [False, True])
def test_embeddings_are_those_of_the_written_out_network_on_kaldis_features(two, tmp_path):
    """WeSpeaker's extraction: Kaldi's filterbank without dither on 16-bit scale, minus its mean, then its network."""
    weights = resnet18_weights(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES, two_emb_layer=two)
    args = {**SIZE, "two_emb_layer": two}
    config, net = load_speaker_net(write_folder(tmp_path, document(model_args=args), weights))
    assert not net.training
    assert config.model == "ResNet18"
    wav = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(1))
    feats = kaldi.fbank(wav * 32768, num_mel_bins=80, dither=0.0, window_type="hamming", use_energy=False)
    feats = (feats - feats.mean(0)).unsqueeze(0)
    with torch.no_grad():
        expected = resnet(weights, feats, num_blocks=RESNET18, two_emb_layer=two)
        torch.testing.assert_close(net(wav), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("ResNet50", {}),
        ("ECAPA_TDNN_GLOB_c512", {"pooling_func": "ASTP"}),
        ("CAMPPlus", {}),
        ("XVEC", {}),
    ],
)
def test_every_kind_of_network_loads_with_the_counters_of_an_average(model, args, tmp_path):
    """That their keys are WeSpeaker's is tested with the models."""
    torch.manual_seed(0)
    own = build_model(model, **SIZE, **args).state_dict()
    weights = {key: value + 0.5 if value.ndim == 0 else value for key, value in own.items()}
    weights["projection.weight"] = torch.zeros(NUM_CLASSES, EMBED_DIM)
    given = document(model=model)
    given["model_args"] = {**SIZE, **args}
    _, net = load_speaker_net(write_folder(tmp_path, given, weights))
    state = net.model.state_dict()
    assert all(torch.equal(state[key], own[key]) for key in own if own[key].ndim)


def test_a_run_folder_and_other_weights(folder, tmp_path):
    run = tmp_path / "run"
    (run / "models").mkdir(parents=True)
    shutil.copy(folder / "config.yaml", run)
    shutil.copy(folder / "avg_model.pt", run / "models" / "model_7.pt")
    with pytest.raises(InputError, match=r"models/avg_model\.pt nor .* exists"):
        load_speaker_net(run)
    _, net = load_speaker_net(run, checkpoint=run / "models" / "model_7.pt")
    shutil.copy(folder / "avg_model.pt", run / "models")
    for other in (load_speaker_net(run)[1], load_speaker_net(folder)[1]):
        assert torch.equal(other.model.seg_1.weight, net.model.seg_1.weight)


def test_weights_of_another_network_are_refused(folder):
    weights = load(folder / "avg_model.pt")
    torch.save({**weights, "seg_1.weight": torch.zeros(3, 5)}, folder / "avg_model.pt")
    with pytest.raises(InputError, match=r"do not fit the network of the config: seg_1\.weight missing"):
        load_speaker_net(folder)
    with pytest.raises(InputError, match="is not a run folder"):
        load_speaker_net(folder / "elsewhere")


def test_a_model_that_cannot_be_trained_here_embeds_all_the_same(folder, tmp_path, caplog):
    weights = load(folder / "avg_model.pt")
    other = {**weights, "projection.trans.2.weight": weights["projection.weight"]}
    del other["projection.weight"]
    changes = {
        "projection_args": {"project_type": "softmax"},
        "dataset_args": {"sample_num_per_epoch": 100},
        "optimizer": "Adam",
    }
    write_folder(tmp_path / "softmax", document(**changes), other)
    config, net = load_speaker_net(tmp_path / "softmax")
    assert torch.equal(net.model.seg_1.weight, weights["seg_1.weight"])
    assert config.model_args.embed_dim == EMBED_DIM
    (warning,) = (r.getMessage() for r in caplog.records if "embeddings alone" in r.getMessage())
    assert "cannot be trained with here" in warning
    assert "unknown optimizer 'Adam'" in warning
    with pytest.raises(InputError, match="project_type: softmax"):
        read_model(tmp_path / "softmax")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dataset_args": {"frontend": "s3prl"}}, r"frontend: 's3prl' is not possible here"),
        ({"model": "CAMPPlus", "model_args": {"config_str": "batchnorm"}}, r"config_str: must be batchnorm-relu"),
    ],
)
def test_what_would_make_other_embeddings_is_refused(changes, match, folder):
    write_folder(folder, document(**changes, loss="MSELoss"), {})
    with pytest.raises(InputError, match=match) as error:
        load_speaker_net(folder)
    assert "MSELoss" not in str(error.value)


def test_ours_with_an_error_is_not_taken_for_embeddings(folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "config.yaml").write_text("exp_dir: x\nnum_epoch: 3\nprojection_args: {project_type: softmax}\n")
    with pytest.raises(InputError, match="num_epoch: unknown key; did you mean 'num_epochs'"):
        load_speaker_net(folder)
    assert not caplog.records


def test_an_imported_model_is_a_run_folder(folder, tmp_path):
    mean_vec = np.random.default_rng(0).standard_normal(EMBED_DIM).astype(np.float32)
    place = folder / "embeddings" / "vox2_dev" / "mean_vec.npy"
    place.parent.mkdir(parents=True)
    np.save(place, mean_vec)
    model = read_model(folder)
    theirs = load(folder / "avg_model.pt")
    assert model.num_parameters == sum(
        value.numel()
        for key, value in theirs.items()
        if not key.startswith("projection.") and key.rpartition(".")[2] in ("weight", "bias")
    )
    assert (model.num_classes, model.has_head) == (NUM_CLASSES, True)

    exp_dir = tmp_path / "exp" / "imported"
    write_model(model, exp_dir)
    assert load_config(exp_dir / "config.yaml") == load_config(folder / "config.yaml", [f"exp_dir={exp_dir}"])
    ours = load(weights_of(exp_dir))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], torch.tensor(1234) if value.ndim == 0 else value)
    np.testing.assert_array_equal(np.load(exp_dir / "embeddings" / "vox2_dev" / "mean_vec.npy"), mean_vec)

    write_model(model, exp_dir)  # again
    other = exp_dir / "config.yaml"
    other.write_text(other.read_text().replace("num_epochs: 30", "num_epochs: 31"))
    with pytest.raises(InputError, match="is the folder of another run"):
        write_model(model, exp_dir)
    np.save(place, np.ones(3, dtype=np.float32))
    with pytest.raises(InputError, match=r"mean_vec\.npy has 3 values, the model's embeddings have 16"):
        read_model(folder)


@pytest.mark.parametrize(
    ("args", "head", "kept"),
    [
        ({"project_type": "arc_margin_intertopk_subcenter", "K": 3}, {"weight": (3 * NUM_CLASSES, EMBED_DIM)}, True),
        ({"project_type": "sphereface2"}, {"weight": (NUM_CLASSES, EMBED_DIM), "bias": (1, 1)}, True),
        ({"project_type": "add_margin"}, {"weight": (NUM_CLASSES, EMBED_DIM)}, True),
        ({"project_type": "q_margin"}, {"trans.2.weight": (NUM_CLASSES, EMBED_DIM)}, False),
    ],
)
def test_heads_of_theirs_are_heads_of_ours(args, head, kept, folder):
    weights = load(folder / "avg_model.pt")
    del weights["projection.weight"]
    weights |= {f"projection.{key}": torch.randn(shape) for key, shape in head.items()}
    given = document()
    given["projection_args"] = {**args, "scale": 20.0}
    model = read_model(write_folder(folder, given, weights))
    assert (model.num_classes, model.has_head) == (NUM_CLASSES, kept)
    if kept:
        own = build_head(model.config.projection_args, embed_dim=EMBED_DIM, num_classes=NUM_CLASSES)
        own.load_state_dict({key: model.weights[f"projection.{key}"] for key in head})


def test_a_published_model_without_its_head(folder):
    weights = load(folder / "avg_model.pt")
    del weights["projection.weight"]
    model = read_model(write_folder(folder, document(), weights))
    assert (model.num_classes, model.has_head) == (None, False)


def test_sizes_that_no_network_has_are_a_sentence_and_take_no_memory(folder):
    for size, match in ((2**31, r"do not fit the network .* seg_1\.bias"), (2**62, "model_args make no network")):
        args = {"model_args": {"embed_dim": size}}
        write_folder(folder, document(**args), load(folder / "avg_model.pt"))
        with pytest.raises(InputError, match=match):
            load_speaker_net(folder)
