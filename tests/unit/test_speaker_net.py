import pytest
import torch
from conftest import ROOT, SMALL

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.speaker_net import SpeakerNet


def make(num_classes, *overrides):
    return SpeakerNet(load_config(ROOT / "conf" / "mini_qmargin.yaml", [*SMALL, *overrides]), num_classes)


def test_weights_go_round_and_the_head_may_be_left_out():
    trained = make(5)
    bare = make(0)
    bare.load_flat_state(trained.flat_state())
    wav = torch.randn(2, 8000)
    assert torch.equal(trained.eval().embed(wav), bare.eval().embed(wav))
    again = make(5)
    again.load_flat_state(trained.flat_state())
    assert torch.equal(trained.projection.weight, again.projection.weight)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("conv1.weight"), "conv1.weight missing"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "extra missing, left over"),
        (
            lambda state: state.update({"seg_1.bias": torch.zeros(7)}),
            "seg_1.bias missing, left over or of another size",
        ),
        (
            lambda state: state.update({"seg_1.bias": "text"}),
            "seg_1.bias missing, left over or of another size or kind",
        ),
        (lambda state: state.update({"seg_1.bias": torch.zeros(16, dtype=torch.complex64)}), "seg_1.bias missing"),
        (lambda state: state.update({"seg_1.bias": torch.zeros(16).to_sparse()}), "seg_1.bias missing"),
        (lambda state: state.update({3: torch.zeros(1)}), "3 missing, left over"),
    ],
)
def test_weights_of_another_network_are_refused(change, named):
    """WeSpeaker loads what fits and warns; the embeddings are then random, and extraction exits with 0."""
    state = make(5).flat_state()
    change(state)
    with pytest.raises(InputError, match=named):
        make(0).load_flat_state(state)


def test_shortest_waveform():
    net = make(0).eval()
    assert net.min_samples == 8 * 160 + 400
    assert net.embed(torch.randn(1, net.min_samples)).isfinite().all()
