import pytest
import torch
from conftest import ROOT, SMALL

from wespeaker.config import load_config
from wespeaker.speaker_net import SpeakerNet


@pytest.fixture
def net():
    return SpeakerNet(load_config(ROOT / "conf" / "mini_qmargin.yaml", SMALL)).eval()


def test_shortest_waveform(net):
    assert net.min_samples == 8 * 160 + 400
    assert net(torch.randn(1, net.min_samples)).isfinite().all()


def test_hidden_bands_change_the_embedding(net):
    wav = torch.randn(2, 8000)
    hidden = net(wav, torch.tensor([[[10, 10], [0, 8]], [[0, 0], [0, 0]]]))
    assert not torch.allclose(hidden[0], net(wav)[0])
    assert torch.equal(hidden[1], net(wav)[1])


def test_the_front_end_is_in_float32_under_autocast(net):
    """bfloat16 has three digits: power spectra in it would give other features, and a coarse backbone only."""
    wav, seen = torch.randn(2, 8000), []
    net.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(wav)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = net(wav)
    assert torch.equal(*seen)
    assert embedding.dtype == torch.bfloat16
