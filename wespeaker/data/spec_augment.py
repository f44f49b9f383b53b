"""SpecAugment: bands of time and of frequency are hidden from the network, other ones for each utterance."""

from __future__ import annotations

import numpy as np
import torch

from wespeaker.config import SpecAugArgs


def draw_masks(args: SpecAugArgs, *, num_frames: int, num_mel_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the bands of one utterance.

    A band's width is uniform from 1 to its maximum, its place uniform among those where all of it fits. (In
    WeSpeaker the whole batch has the same bands, and those of time may be cut off by the end.)

    Args:
        args: of the config.
        num_frames: T.
        num_mel_bins: F.
        rng: a share ``prob`` of the utterances gets bands at all.

    Returns:
        (num_t_mask + num_f_mask, 2) int64, first and after-last frame or bin, those of time first; (0, 0) hides none.

    """
    masks = np.zeros((args.num_t_mask + args.num_f_mask, 2), dtype=np.int64)
    if rng.random() < args.prob:
        for number in range(len(masks)):
            size, widest = (num_frames, args.max_t) if number < args.num_t_mask else (num_mel_bins, args.max_f)
            width = int(rng.integers(min(widest, size))) + 1
            start = int(rng.integers(size - width + 1))
            masks[number] = start, start + width
    return masks


def spec_augment(feats: torch.Tensor, masks: torch.Tensor, *, num_t_mask: int) -> torch.Tensor:
    """Set the bands to 0, which after mean normalisation is the mean.

    Args:
        feats: (B, T, F); gradients pass where nothing is hidden.
        masks: (B, M, 2) of ``draw_masks``, on the same device.
        num_t_mask: how many of the M, the first ones, are bands of time.

    Returns:
        (B, T, F).

    Source: SpecAugment (Park et al., 2019), without its time warping.

    """
    frames = _inside(masks[:, :num_t_mask], feats.shape[1])  # (B, T)
    bins = _inside(masks[:, num_t_mask:], feats.shape[2])  # (B, F)
    return feats.masked_fill(frames.unsqueeze(2) | bins.unsqueeze(1), 0.0)


def _inside(bands: torch.Tensor, size: int) -> torch.Tensor:
    """Return for (B, M, 2) bands which of the positions 0 to size - 1 lie in any of them, (B, size) bool."""
    position = torch.arange(size, device=bands.device)
    return ((bands[..., :1] <= position) & (position < bands[..., 1:])).any(dim=1)
