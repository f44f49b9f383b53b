import numpy as np
import pytest
import torch

from wespeaker.config import SpecAugArgs
from wespeaker.data.spec_augment import draw_masks, spec_augment

T, F = 30, 12


def drawn(args, num=400):
    rng = np.random.default_rng(0)
    return np.stack([draw_masks(args, num_frames=T, num_mel_bins=F, rng=rng) for _ in range(num)])


def test_shares_widths_and_places():
    args = SpecAugArgs(num_t_mask=1, num_f_mask=2, max_t=10, max_f=4, prob=0.6)
    masks = drawn(args)
    assert masks.shape == (400, 3, 2)
    given = masks[masks.any(axis=(1, 2))]
    assert len(given) / 400 == pytest.approx(0.6, abs=0.08)
    for number, (size, widest) in enumerate(((T, 10), (F, 4), (F, 4))):
        start, end = given[:, number].T
        assert set(end - start) == set(range(1, widest + 1))
        assert start.min() == 0
        assert end.max() == size


def test_a_band_may_be_as_wide_as_what_there_is():
    masks = drawn(SpecAugArgs(num_t_mask=1, num_f_mask=1, max_t=500, max_f=500, prob=1.0))
    assert (masks[:, 0, 1] <= T).all()
    assert (masks[:, 1, 1] <= F).all()


def test_what_is_hidden_is_zero_and_the_rest_untouched_for_each_utterance_on_its_own():
    masks = torch.from_numpy(drawn(SpecAugArgs(num_t_mask=2, num_f_mask=1), num=16))
    feats = torch.randn(16, T, F)
    out = spec_augment(feats, masks, num_t_mask=2)
    expected = feats.clone()
    for utt, bands in zip(expected, masks.tolist(), strict=True):
        for start, end in bands[:2]:
            utt[start:end] = 0
        start, end = bands[2]
        utt[:, start:end] = 0
    assert torch.equal(out, expected)
    assert len({tuple(map(tuple, bands)) for bands in masks.tolist()}) > 5
    assert torch.equal(spec_augment(feats, masks[:, :0], num_t_mask=0), feats)


def test_gradients_pass_where_nothing_is_hidden():
    """WeSpeaker detaches its features, so that a front end cannot be trained through it."""
    feats = torch.randn(2, T, F, requires_grad=True)
    masks = torch.tensor([[[3, 5], [0, 2]], [[0, 0], [0, 0]]])
    spec_augment(feats, masks, num_t_mask=1).sum().backward()
    assert torch.equal(feats.grad[1], torch.ones(T, F))
    assert feats.grad[0].sum() == (T - 2) * (F - 2)
