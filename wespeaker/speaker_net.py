"""The network that is trained: waveform → features → backbone → head, as one module with WeSpeaker's flat keys."""

from __future__ import annotations

import torch
from torch import nn

from wespeaker.config import Config
from wespeaker.data.dataset import make_fbank
from wespeaker.data.features import mean_normalise
from wespeaker.data.spec_augment import spec_augment
from wespeaker.errors import InputError, listing
from wespeaker.losses import HeadOutput, build_head
from wespeaker.models import build_model

HEAD_PREFIX = "projection."


class SpeakerNet(nn.Module):
    """Front end, backbone and head.

    One forward pass goes through all three, so that wrappers (DistributedDataParallel, compile) see the head too.

    Args:
        config: the experiment.
        num_classes: C; 0 leaves the head out, as for extraction.

    """

    def __init__(self, config: Config, num_classes: int) -> None:
        super().__init__()
        self.fbank = make_fbank(config.dataset_args)
        self._num_t_mask = config.dataset_args.spec_aug_args.num_t_mask
        self.model = build_model(config.model, **config.model_args.model_dump())
        self.projection = (
            build_head(config.projection_args, embed_dim=config.model_args.embed_dim, num_classes=num_classes)
            if num_classes
            else None
        )

    @property
    def min_samples(self) -> int:
        """The shortest waveform that can be embedded, in samples."""
        min_frames = self.model.min_frames
        assert isinstance(min_frames, int)
        return self.fbank.num_samples(min_frames)

    def embed(self, wav: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (B, D) of waveforms.

        Args:
            wav: (B, N).
            masks: (B, M, 2), bands of SpecAugment in training; None or M = 0 for none.

        """
        feats = mean_normalise(self.fbank(wav))
        if masks is not None and masks.shape[1]:
            feats = spec_augment(feats, masks, num_t_mask=self._num_t_mask)
        return self.model(feats)

    def forward(self, wav: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor | None = None) -> HeadOutput:
        """Return the head's output for waveforms (B, N), labels (B,) and masks (B, M, 2)."""
        assert self.projection is not None
        return self.projection(self.embed(wav, masks), labels)

    def flat_state(self) -> dict[str, torch.Tensor]:
        """Return the weights under WeSpeaker's keys: the backbone's bare, the head's after ``projection.``."""
        state = dict(self.model.state_dict())
        if self.projection is not None:
            state |= {HEAD_PREFIX + key: value for key, value in self.projection.state_dict().items()}
        return state

    def load_flat_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load what ``flat_state`` gave; a head in ``state`` is passed over where this network has none.

        Raises:
            InputError: keys, shapes or kinds of numbers differ; the first of them are named. (A network that is filled
                in part gives embeddings that look like embeddings.)

        """
        own = self.flat_state()
        given = state if self.projection else {k: v for k, v in state.items() if not str(k).startswith(HEAD_PREFIX)}
        odd = sorted(own.keys() ^ given.keys(), key=str)
        odd += [key for key in own.keys() & given.keys() if not _fits(given[key], own[key])]
        if odd:
            raise InputError(
                f"the weights do not fit the network of the config: {listing(odd, 3)} missing, left over or of another "
                f"size or kind; is this the checkpoint of this run folder?"
            )
        head = {key.removeprefix(HEAD_PREFIX): value for key, value in given.items() if key.startswith(HEAD_PREFIX)}
        self.model.load_state_dict({key: value for key, value in given.items() if not key.startswith(HEAD_PREFIX)})
        if self.projection is not None:
            self.projection.load_state_dict(head)


def _fits(given: object, own: torch.Tensor) -> bool:
    """Whether a weight can take the place of another: dense, of its shape, and fractions where those are."""
    return (
        isinstance(given, torch.Tensor)
        and given.shape == own.shape
        and given.layout == own.layout
        and given.is_floating_point() == own.is_floating_point()
    )
