"""Bytes counted by hand, and those of heads and optimisers that are there."""

import pytest
import torch
from conftest import ROOT
from torch import nn

from wespeaker.config import load_config
from wespeaker.losses import PROJECT_TYPES, build_head
from wespeaker.train.memory import head_size, head_step, network_step, optimizer_copies, peak_of_step


def load(*overrides):
    return load_config(ROOT / "conf" / "resnet34_qmargin.yaml", overrides)


def loss_of(name):
    margin = 1.2 if PROJECT_TYPES[name].place == "factor" else 0.1
    return load(
        f"projection_args={{project_type: {name}}}",
        f"margin_update={{initial_margin: {margin}, final_margin: {margin}}}",
    )


def two_layers(hidden):
    return nn.Sequential(nn.Linear(100, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 10, bias=False))


def test_the_peak_of_two_layers_is_the_one_counted_by_hand():
    """1,000 rows of float32: 50 numbers before and 50 after the ReLU, and 50 of gradient; then the sum and its one."""
    peak = network_step(lambda: two_layers(50), (100,), batch_size=1000, precision="float32")
    assert peak == 4 * 1000 * (50 + 50 + 50) + 4 + 4


def test_what_is_done_in_place_or_looks_at_the_input_takes_nothing():
    layers = nn.Sequential(nn.Linear(100, 50, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    rows = torch.randn(1000, 100)
    peak = peak_of_step(layers, lambda: layers(rows.view(100, 10, 100).view(1000, 100)).sum(), [rows])
    assert peak == 4 * (1000 * 50) + 4 + 4 + 4 * (1000 * 50)  # activations, the sum, its one, the gradient of the ReLU


def test_sixteen_bits_take_half():
    full, half = (
        network_step(lambda: two_layers(512), (100,), batch_size=256, precision=name) for name in ("float32", "bf16")
    )
    assert half == pytest.approx(full / 2, rel=0.01)


@pytest.mark.parametrize("name", PROJECT_TYPES)
def test_the_size_of_a_head_is_that_of_the_one_that_is_built(name):
    config = loss_of(name)
    head = build_head(config.projection_args, embed_dim=24, num_classes=70)
    size = head_size(config, embed_dim=24)
    assert size.params(70) == sum(param.numel() for param in head.parameters())
    assert size.nbytes(num_classes=70, here=70) == sum(value.nbytes for value in head.state_dict().values())


@pytest.mark.parametrize("name", ["softmax", "arc_margin", "q_margin", "curricular"])
def test_a_smaller_step_tells_what_the_whole_one_takes(name):
    config = loss_of(name)
    rows, dim, classes = 192, 96, 6144
    head = build_head(config.projection_args, embed_dim=dim, num_classes=classes)
    head.streamable = False  # as on a GPU
    embeddings = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = peak_of_step(head, lambda: head(embeddings, torch.arange(rows)).loss, [embeddings])
    told = head_step(config, embed_dim=dim, num_rows=rows, num_classes=classes, device="cuda")
    assert told == pytest.approx(whole, rel=0.1)
    assert whole > 2 * rows * classes * 4  # logits and their gradient


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [((), 1), (("optimizer_args={momentum: 0, nesterov: false}",), 0), (("optimizer=AdamW", "optimizer_args={}"), 2)],
)
def test_an_optimiser_keeps_so_many_numbers_for_each_parameter(overrides, copies):
    assert optimizer_copies(load(*overrides)) == copies
