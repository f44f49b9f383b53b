"""The network of speakers: waveform → features → backbone → embedding."""

from __future__ import annotations

import torch
from torch import nn

from wespeaker.config import Config
from wespeaker.data.dataset import make_fbank
from wespeaker.data.features import mean_normalise
from wespeaker.data.spec_augment import spec_augment
from wespeaker.models import build_model


class SpeakerNet(nn.Module):
    """Front end, which has no weights, and backbone; the head is no part of it, for training alone needs one.

    Args:
        config: the experiment.

    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fbank = make_fbank(config.dataset_args)
        self._num_t_mask = config.dataset_args.spec_aug_args.num_t_mask
        self.model = build_model(config.model, **config.model_args.model_dump())

    @property
    def min_samples(self) -> int:
        """The shortest waveform that can be embedded, in samples."""
        min_frames = self.model.min_frames
        assert isinstance(min_frames, int)
        return self.fbank.num_samples(min_frames)

    def forward(self, wav: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (B, D) of waveforms.

        The front end computes in float32 also under autocast: a spectrum does not fit in half precision.

        Args:
            wav: (B, N).
            masks: (B, M, 2), bands of SpecAugment in training; None or M = 0 for none.

        """
        with torch.autocast(wav.device.type, enabled=False):
            feats = mean_normalise(self.fbank(wav))
            if masks is not None and masks.shape[1]:
                feats = spec_augment(feats, masks, num_t_mask=self._num_t_mask)
        return self.model(feats)
