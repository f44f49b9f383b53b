"""The heads that bench_head.py compares with, each the best that its kind allows.

    arc_opt       ArcFace with all tricks: one B × C buffer, chunked products, no copy of the weight, no second pass
    arc_autograd  ArcFace as usually written: F.normalize, F.linear, F.cross_entropy
    paper         the α-divergence on the 5 % largest logits, 30 bisections, dense backward
    entmax        entmax's entmax_bisect_loss on all logits (30 bisections; its default of 50 is slower)

All take embeddings (B, D), weight (C, D) and labels (B,) and return the mean loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048


class _ArcOpt(torch.autograd.Function):
    """Logits are at most s, so softmax needs no maximum: each tile is scaled, exponentiated and summed in cache.

    The radial part of the prototypes' gradient is that of the raw one along the prototype, so the logits
    themselves need not be kept.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
        inverse_e = embeddings.norm(dim=1, keepdim=True).reciprocal()
        directions = embeddings * inverse_e * scale
        transposed = directions.T.contiguous()
        p = weight.new_empty(len(weight), len(labels))  # class-major
        inverse = weight.new_empty(len(weight))
        rows = torch.arange(len(labels))
        own = weight[labels]
        cosine = ((directions * own).sum(1) / own.norm(dim=1) / scale).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = cosine.acos() + margin
        target = scale * angle.cos()
        total = torch.zeros(len(labels))
        for first in range(0, len(weight), CHUNK):
            chunk, tile = weight[first : first + CHUNK], p[first : first + CHUNK]
            norm = torch.linalg.vector_norm(chunk, dim=1).reciprocal_()
            inverse[first : first + CHUNK] = norm
            torch.mm(chunk, transposed, out=tile).mul_(norm.unsqueeze(1)).sub_(scale).exp_()
            total += tile.sum(0)
        own_p = (target - scale).exp()
        total += own_p - p[labels, rows]
        p[labels, rows] = own_p
        slope = angle.sin() / (1.0 - cosine**2).sqrt()
        ctx.save_for_backward(embeddings, weight, labels, inverse_e, inverse, directions, p, total, slope)
        ctx.scale = scale
        return (total.log() + scale - target).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight, labels, inverse_e, inverse, directions, p, total, slope = ctx.saved_tensors
        rows = torch.arange(len(labels))
        own = (p[labels, rows] / total - 1.0) * slope * total
        p[labels, rows] = own
        factor = grads[0] / len(labels) / total
        grad_weight, grad = torch.empty_like(weight), torch.zeros_like(embeddings)
        for first in range(0, len(weight), CHUNK):
            last = first + CHUNK
            chunk, norm = weight[first:last], inverse[first:last]
            g = p[first:last].mul_(factor).mul_(norm.unsqueeze(1))
            grad.addmm_(g.T, chunk)
            raw = torch.mm(g, directions, out=grad_weight[first:last])
            along = torch.linalg.vecdot(raw, chunk).mul_(norm).mul_(norm)
            raw.addcmul_(chunk, along.unsqueeze(1), value=-1.0)
        unit = embeddings * inverse_e
        grad = (grad - unit * torch.linalg.vecdot(grad, unit).unsqueeze(1)) * (ctx.scale * inverse_e)
        return grad, grad_weight, None, None, None


def arc_opt(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return _ArcOpt.apply(embeddings, weight, labels, 32.0, 0.2)


def arc_autograd(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    cosine = F.linear(F.normalize(embeddings), F.normalize(weight))
    own = cosine.gather(1, labels.unsqueeze(1)).clamp(-1 + 1e-6, 1 - 1e-6)
    return F.cross_entropy(32.0 * cosine.scatter(1, labels.unsqueeze(1), (own.acos() + 0.2).cos()), labels)


class _TopShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, labels: Tensor, alpha: float, log_q: float) -> Tensor:
        b = alpha - 1.0
        top, classes = theta.topk(math.ceil(0.05 * theta.shape[1]), dim=1)
        q = torch.where(classes == labels.unsqueeze(1), math.exp(log_q), 1.0)
        high = top[:, :1] + 0.0
        low = high - (q[:, :1] ** -b - 1.0) / b
        high = high - (q.sum(1, keepdim=True) ** -b - 1.0) / b
        for _ in range(30):
            middle = 0.5 * (low + high)
            above = ((1.0 + b * (top - middle)).clamp_(min=0.0).pow_(1.0 / b) * q).sum(1, keepdim=True) >= 1.0
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        p = (1.0 + b * (top - low)).clamp_(min=0.0).pow_(1.0 / b) * q
        own = theta.gather(1, labels.unsqueeze(1))
        loss = low - own + ((p * b * (top - low)).sum(1, keepdim=True) + (math.exp(-b * log_q) - 1.0) / b) / alpha
        grad = torch.zeros_like(theta).scatter_(1, classes, p / p.sum(1, keepdim=True))
        grad.scatter_add_(1, labels.unsqueeze(1), torch.full_like(own, -1.0))
        ctx.save_for_backward(grad)
        return loss.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(grads[0] / len(grad)), None, None, None


def paper(embeddings: Tensor, weight: Tensor, labels: Tensor, alpha: float, scale: float, margin: float) -> Tensor:
    theta = F.linear(scale * F.normalize(embeddings), F.normalize(weight))
    return _TopShare.apply(theta, labels, alpha, -scale * margin)


def entmax_loss(embeddings: Tensor, weight: Tensor, labels: Tensor, alpha: float, scale: float) -> Tensor:
    import entmax

    theta = F.linear(scale * F.normalize(embeddings), F.normalize(weight))
    return entmax.entmax_bisect_loss(theta, labels, alpha, n_iter=30).mean()
