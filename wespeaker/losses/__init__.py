"""Losses: a margin × a divergence. Q-Margin, ArcFace, CosFace, EntMax, SparseMax and plain softmax."""

from wespeaker.losses.divergence import (
    AlphaDivergence,
    alpha_divergence,
    alpha_divergence_loss,
    alpha_softargmax,
)
from wespeaker.losses.heads import (
    PROJECT_TYPES,
    HeadOutput,
    MarginHead,
    ProjectType,
    SoftmaxHead,
    build_head,
    scaled_cosines,
    validate_projection_args,
)
from wespeaker.losses.margins import angular_margin, cosine_margin, log_prior_margin, zero_loss_gap
from wespeaker.losses.row_sparse_sgd import RowSparseSGD, clip_grad_norm, grad_norm

__all__ = [
    "PROJECT_TYPES",
    "AlphaDivergence",
    "HeadOutput",
    "MarginHead",
    "ProjectType",
    "RowSparseSGD",
    "SoftmaxHead",
    "alpha_divergence",
    "alpha_divergence_loss",
    "alpha_softargmax",
    "angular_margin",
    "build_head",
    "clip_grad_norm",
    "cosine_margin",
    "grad_norm",
    "log_prior_margin",
    "scaled_cosines",
    "validate_projection_args",
    "zero_loss_gap",
]
