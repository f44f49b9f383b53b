"""What the tests of backbones share: shapes of keys written down, and networks written out on their weights."""

import torch
import torch.nn.functional as F


def layer(name, *shape, bias=True):
    """The keys of a convolution or linear layer."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def norm(name, channels, *, affine=True):
    """The keys of a batch normalisation."""
    parts = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def resnet_keys(num_blocks, *, expansion=1, two_emb_layer=False, channels=32, feat_dim=80, embed_dim=256):
    """The keys and shapes of WeSpeaker's ResNets of basic blocks, or of bottlenecks (expansion 4), with TSTP."""
    keys = layer("conv1", channels, 1, 3, 3, bias=False) | norm("bn1", channels)
    width = channels
    for stage, count in enumerate(num_blocks, 1):
        inner = channels * 2 ** (stage - 1)
        for number in range(count):
            name, out = f"layer{stage}.{number}", inner * expansion
            sizes = ((width, inner, 3), (inner, inner, 3))
            if expansion > 1:
                sizes = ((width, inner, 1), (inner, inner, 3), (inner, out, 1))
            for i, (first, last, kernel) in enumerate(sizes, 1):
                keys |= layer(f"{name}.conv{i}", last, first, kernel, kernel, bias=False) | norm(f"{name}.bn{i}", last)
            if (number == 0 and stage > 1) or width != out:
                keys |= layer(f"{name}.shortcut.0", out, width, 1, 1, bias=False) | norm(f"{name}.shortcut.1", out)
            width = out
    keys |= layer("seg_1", embed_dim, 2 * width * feat_dim // 8)
    if two_emb_layer:
        keys |= norm("seg_bn_1", embed_dim, affine=False) | layer("seg_2", embed_dim, embed_dim)
    return keys


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


class Graph:
    """Functional layers that find their weights by name."""

    def __init__(self, state):
        self.state = state

    def conv1d(self, x, name, **options):
        return F.conv1d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def conv2d(self, x, name, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], **options)

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x, name):
        get = self.state.get
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, get(f"{name}.weight"), get(f"{name}.bias"))


def trained_a_little(model, feats):
    """Move the running statistics and the scales off their start; in eval mode and float64."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) and module.affine:
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    for _ in range(2):
        model(torch.randn_like(feats))
    return model.eval()


def resnet(state, feats, *, num_blocks, strides=(1, 2, 2, 2), two_emb_layer=False):
    """WeSpeaker's published ResNet with TSTP, from features (B, T, F) to embeddings (B, D)."""
    g = Graph(state)
    x = g.norm(g.conv2d(feats.permute(0, 2, 1)[:, None], "conv1", padding=1), "bn1").relu()
    for stage, (count, first_stride) in enumerate(zip(num_blocks, strides, strict=True), 1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", first_stride if number == 0 else 1
            if f"{name}.conv3.weight" in state:
                y = g.norm(g.conv2d(x, f"{name}.conv1"), f"{name}.bn1").relu()
                y = g.norm(g.conv2d(y, f"{name}.conv2", stride=stride, padding=1), f"{name}.bn2").relu()
                y = g.norm(g.conv2d(y, f"{name}.conv3"), f"{name}.bn3")
            else:
                y = g.norm(g.conv2d(x, f"{name}.conv1", stride=stride, padding=1), f"{name}.bn1").relu()
                y = g.norm(g.conv2d(y, f"{name}.conv2", padding=1), f"{name}.bn2")
            if f"{name}.shortcut.0.weight" in state:
                x = g.norm(g.conv2d(x, f"{name}.shortcut.0", stride=stride), f"{name}.shortcut.1")
            x = (x + y).relu()
    stats = torch.cat([x.mean(-1).flatten(1), torch.sqrt(x.var(-1, unbiased=True) + 1e-7).flatten(1)], dim=1)
    out = g.linear(stats, "seg_1")
    return g.linear(g.norm(out.relu(), "seg_bn_1"), "seg_2") if two_emb_layer else out
