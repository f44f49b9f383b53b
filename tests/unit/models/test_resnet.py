import pytest
import torch
import torch.nn.functional as F

from wespeaker.models import build_model


def test_keys_are_wespeakers():
    keys = build_model("ResNet34").state_dict().keys()
    expected = {"conv1.weight", "bn1.running_mean", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"}
    expected |= {"layer4.2.bn2.num_batches_tracked", "seg_1.weight", "seg_1.bias"}
    assert expected <= set(keys)
    assert not any(key.startswith(("seg_2", "pool")) for key in keys)
    two = build_model("ResNet34", two_emb_layer=True).state_dict().keys()
    assert set(two) - set(keys) == {
        "seg_bn_1.running_mean", "seg_bn_1.running_var", "seg_bn_1.num_batches_tracked", "seg_2.weight", "seg_2.bias",
    }  # fmt: skip
    assert "layer1.0.shortcut.0.weight" in build_model("ResNet50").state_dict()


def reference(state, feats, *, num_blocks, strides, two_emb_layer):
    """The network written out on its weights: WeSpeaker's published graph, with torch's functional layers."""

    def norm(x, name, affine=True):
        parts = (state[f"{name}.{key}"] for key in ("weight", "bias")) if affine else (None, None)
        return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], *parts)

    x = feats.permute(0, 2, 1)[:, None]
    x = torch.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for stage, (count, first_stride) in enumerate(zip(num_blocks, strides, strict=True), 1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", first_stride if number == 0 else 1
            if f"{name}.conv3.weight" in state:
                y = torch.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
                y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
                y = norm(F.conv2d(torch.relu(norm(y, f"{name}.bn2")), state[f"{name}.conv3.weight"]), f"{name}.bn3")
            else:
                y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
                y = norm(
                    F.conv2d(torch.relu(norm(y, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1),
                    f"{name}.bn2",
                )
            if f"{name}.shortcut.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride), f"{name}.shortcut.1")
            x = torch.relu(x + y)
    stats = torch.cat([x.mean(-1).flatten(1), torch.sqrt(x.var(-1, unbiased=True) + 1e-7).flatten(1)], dim=1)
    out = F.linear(stats, state["seg_1.weight"], state["seg_1.bias"])
    if two_emb_layer:
        out = F.linear(norm(torch.relu(out), "seg_bn_1", affine=False), state["seg_2.weight"], state["seg_2.bias"])
    return out


@pytest.mark.parametrize(
    ("name", "num_blocks", "two"),
    [("ResNet18", (2, 2, 2, 2), False), ("ResNet34", (3, 4, 6, 3), True), ("ResNet50", (3, 4, 6, 3), False)],
)
def test_output_is_the_written_out_network(name, num_blocks, two):
    torch.manual_seed(0)
    model = build_model(name, m_channels=4, embed_dim=16, two_emb_layer=two).double()
    for _ in range(2):
        model(torch.randn(4, 50, 80, dtype=torch.float64))  # moves the running statistics off their start
    model.eval()
    feats = torch.randn(2, 47, 80, dtype=torch.float64)
    expected = reference(model.state_dict(), feats, num_blocks=num_blocks, strides=(1, 2, 2, 2), two_emb_layer=two)
    torch.testing.assert_close(model(feats), expected, rtol=1e-10, atol=1e-10)
