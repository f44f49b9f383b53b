import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.models import FACE_MODELS, MODELS, build_model, check_model

BLOCKS = {
    "IResNet18": (2, 2, 2, 2),
    "IResNet34": (3, 4, 6, 3),
    "IResNet50": (3, 4, 14, 3),
    "IResNet100": (3, 13, 30, 3),
}


def norm_keys(name):
    return {f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def checkpoint_shapes(num_blocks):
    """Keys of a checkpoint of ArcFace's code, and the shapes of its weights, for images of 112 x 112 x 3."""
    shapes = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,), "fc.weight": (512, 512 * 49), "fc.bias": (512,)}
    norms = {"bn1": 64, "bn2": 512, "features": 512}
    before = 64
    for stage, (count, planes) in enumerate(zip(num_blocks, (64, 128, 256, 512), strict=True), 1):
        for number in range(count):
            name = f"layer{stage}.{number}"
            shapes[f"{name}.conv1.weight"] = (planes, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            shapes[f"{name}.prelu.weight"] = (planes,)
            norms |= {f"{name}.bn1": before, f"{name}.bn2": planes, f"{name}.bn3": planes}
            if number == 0:
                shapes[f"{name}.downsample.0.weight"] = (planes, before, 1, 1)
                norms[f"{name}.downsample.1"] = planes
            before = planes
    for name, size in norms.items():
        shapes |= {key: () if key.endswith("tracked") else (size,) for key in norm_keys(name)}
    return shapes


@pytest.mark.parametrize("name", BLOCKS)
def test_keys_and_shapes_are_those_of_arcfaces_checkpoints(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == checkpoint_shapes(BLOCKS[name])


@pytest.mark.parametrize(
    ("name", "millions"),
    [("IResNet18", 24.03), ("IResNet34", 34.14), ("IResNet50", 43.59), ("IResNet100", 65.16)],
)
def test_sizes_are_those_that_are_published(name, millions):
    with torch.device("meta"):
        model = build_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def reference(state, images, num_blocks):
    """The network written out on its weights: ArcFace's published graph, with torch's functional layers."""

    def norm(x, name):
        parts = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1")
    x = F.prelu(x, state["prelu.weight"])
    for stage, count in enumerate(num_blocks, 1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            y = norm(F.conv2d(norm(x, f"{name}.bn1"), state[f"{name}.conv1.weight"], padding=1), f"{name}.bn2")
            y = F.conv2d(F.prelu(y, state[f"{name}.prelu.weight"]), state[f"{name}.conv2.weight"], None, stride, 1)
            if number == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride), f"{name}.downsample.1")
            x = norm(y, f"{name}.bn3") + x
    x = F.linear(norm(x, "bn2").flatten(1), state["fc.weight"], state["fc.bias"])
    return norm(x, "features")


@pytest.mark.parametrize(("name", "num_blocks"), [("IResNet10", (1, 1, 1, 1)), ("IResNet50", BLOCKS["IResNet50"])])
def test_output_is_the_written_out_network(name, num_blocks):
    torch.manual_seed(0)
    model = build_model(name, width=4, image_size=32, embed_dim=16).double()
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32, dtype=torch.float64))  # moves the running statistics off their start
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = reference(model.state_dict(), images, num_blocks)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 16), (1, 48), (3, 64)])
def test_any_multiple_of_16_in_grey_or_colour(in_channels, image_size):
    model = build_model("IResNet10", width=2, in_channels=in_channels, image_size=image_size, embed_dim=8)
    assert model.image_shape == (in_channels, image_size, image_size)
    assert model(torch.randn(2, *model.image_shape)).shape == (2, 8)


def test_other_images_are_refused():
    with pytest.raises(InputError, match=r"image_size must be a multiple of 16, such as 48 or 112, found 100"):
        build_model("IResNet10", image_size=100)
    model = build_model("IResNet10", width=2, image_size=48)
    with pytest.raises(ValueError, match=r"images must be \(batch, 3, 48, 48\), found \(2, 1, 48, 48\)"):
        model(torch.randn(2, 1, 48, 48))


def test_the_start_is_arcfaces():
    torch.manual_seed(0)
    model = build_model("IResNet18", image_size=16)
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Conv2d)])
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)
    assert weights.std().item() == pytest.approx(0.1, abs=1e-4)
    assert torch.equal(model.features.weight, torch.ones(512))


def test_the_scale_of_the_embedding_is_not_trained():
    model = build_model("IResNet10", width=2, image_size=16, embed_dim=8)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == ["features.weight"]


def test_embeddings_are_float32_under_autocast():
    model = build_model("IResNet10", width=2, image_size=16, embed_dim=8).eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, model(images), rtol=0.1, atol=0.1)


def test_a_model_of_images_is_refused_for_speech_and_the_reverse():
    with pytest.raises(InputError, match=r"IResNet50 takes images, and features are given to it here; did you mean 'R"):
        load_config(ROOT / "conf" / "mini_qmargin.yaml", ["model=IResNet50"])
    with pytest.raises(InputError, match=r"ResNet34 takes features, and images are given .* did you mean 'IResNet34'"):
        check_model("ResNet34", takes="images")
    with pytest.raises(InputError, match=r"unknown model 'iresnet50'"):
        check_model("iresnet50", takes="images")
    assert all(check_model(name, takes="images") == name for name in FACE_MODELS)
    assert not FACE_MODELS.keys() & MODELS.keys()
