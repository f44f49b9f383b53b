"""The straightforward chain makes what training makes, or its time says nothing."""

import json

import numpy as np
import pytest
import torch
from bench_loader import CROP, FBANK, RATE, speed_with_scipy, speed_with_torchaudio, straightforward_example
from conftest import write_wav
from scipy.signal import lfilter

from wespeaker.config import DatasetArgs
from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.data.augment import Augmenter
from wespeaker.data.bank import BankFile
from wespeaker.data.dataset import TrainingSet, read_training_list
from wespeaker.data.features import mean_normalise


class Drawn:
    """A generator that draws the first place and the first file, an SNR of 10 dB, and the shares it is given."""

    def __init__(self, *shares):
        self.shares = list(shares)

    def integers(self, *_):
        return 0

    def random(self):
        return self.shares.pop(0)

    def uniform(self, low, high):
        return 10.0


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    wav = 0.05 * lfilter([1.0], [1.0, -1.2, 0.4], rng.standard_normal(CROP))
    speech = write_wav(tmp_path / "a.wav", wav)
    rir = np.exp(-np.arange(4000) / 500) * rng.standard_normal(4000) * 0.05
    rir[0] = 0.9
    return (
        str(speech),
        str(write_wav(tmp_path / "noise/n.wav", 0.1 * rng.standard_normal(CROP))),
        str(write_wav(tmp_path / "rirs/r.wav", rir)),
    )


@pytest.mark.parametrize("what", ["clean", "reverb", "noise"])
def test_the_straightforward_chain_makes_the_same_features(files, tmp_path, what):
    speech, noise, rir = files
    shares = {"clean": (0.9,), "reverb": (0.1, 0.1), "noise": (0.1, 0.9)}[what]
    feats = straightforward_example(speech, [("noise", noise)], [rir], Drawn(*shares), speed_with_torchaudio)
    banks = [BankFile("noise/a.wav", AudioSource(path), audio_length(AudioSource(path))) for path in (noise, rir)]
    entries = [{"key": f"{spk}/a", "spk": spk, "wav": speech, "num_samples": CROP, "sample_rate": RATE} for spk in "ab"]
    (tmp_path / "raw.list").write_text("\n".join(map(json.dumps, entries)) + "\n")
    args = DatasetArgs(speed_perturb=False, aug_prob=float(what != "clean"), reverb_share=float(what == "reverb"))
    augmenter = Augmenter(
        noises=banks[:1], rirs=banks[1:], aug_prob=args.aug_prob, reverb_share=args.reverb_share, rate=RATE
    )
    dataset = TrainingSet(read_training_list(tmp_path / "raw.list", "raw", args), args, augmenter, seed=0)
    mine = mean_normalise(FBANK(torch.from_numpy(dataset[1, 0].wav)[None]))[0]
    # The dither differs, and for noise the drawn SNR.
    assert (feats - mine).abs().mean() < (0.05 if what != "noise" else 0.5)


def test_both_ways_to_change_the_speed_do_the_same():
    tone = np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE).astype(np.float32)
    for speed in (0.9, 1.1):
        one, other = speed_with_torchaudio(tone, speed), speed_with_scipy(tone, speed)
        np.testing.assert_allclose(one[500:13_000], other[500:13_000], atol=0.01)
