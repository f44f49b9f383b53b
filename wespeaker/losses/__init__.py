"""Losses: a margin × a divergence. Q-Margin, the margins of the field, and the binary losses; see PROJECT_TYPES."""

from wespeaker.losses.cosines import scaled_cosines
from wespeaker.losses.divergence import (
    AlphaDivergence,
    alpha_divergence,
    alpha_divergence_loss,
    alpha_softargmax,
)
from wespeaker.losses.heads import BinaryHead, Head, HeadOutput, MarginHead, SoftmaxHead, build_head
from wespeaker.losses.margins import (
    adaface_margin,
    angular_margin,
    cosine_margin,
    curricular_negatives,
    inter_topk_penalty,
    log_prior_margin,
    multiplicative_margin,
    zero_loss_gap,
    zero_loss_margin,
)
from wespeaker.losses.prototypes import forget_momentum
from wespeaker.losses.registry import PROJECT_TYPES, ProjectType, check_margin, validate_projection_args
from wespeaker.losses.row_sparse_sgd import RowSparseSGD, clip_grad_norm, grad_norm, grad_norms
from wespeaker.losses.shards import Shards

__all__ = [
    "PROJECT_TYPES",
    "AlphaDivergence",
    "BinaryHead",
    "Head",
    "HeadOutput",
    "MarginHead",
    "ProjectType",
    "RowSparseSGD",
    "Shards",
    "SoftmaxHead",
    "adaface_margin",
    "alpha_divergence",
    "alpha_divergence_loss",
    "alpha_softargmax",
    "angular_margin",
    "build_head",
    "check_margin",
    "clip_grad_norm",
    "cosine_margin",
    "curricular_negatives",
    "forget_momentum",
    "grad_norm",
    "grad_norms",
    "inter_topk_penalty",
    "log_prior_margin",
    "multiplicative_margin",
    "scaled_cosines",
    "validate_projection_args",
    "zero_loss_gap",
    "zero_loss_margin",
]
