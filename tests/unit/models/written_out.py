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
