"""The heads that bench_head.py and bench_sharded.py compare with, each the best that its kind allows.

    arc_opt       ArcFace with all tricks: one B × C buffer, chunked products, no copy of the weight, no second pass
    arc_autograd  ArcFace as usually written: F.normalize, F.linear, F.cross_entropy
    paper         the α-divergence on the 5 % largest logits, 30 bisections, dense backward
    entmax        entmax's entmax_bisect_loss on all logits (30 bisections; its default of 50 is slower)
    partial_fc    ArcFace with the classes split over processes, as usually written: PartialFC without sampling

All take embeddings (B, D), weight (C, D) and labels (B,) and return the mean loss; for partial_fc they are
those of this process.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed
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


class _OfAllRanks(torch.autograd.Function):
    """(b, D) to everyone's (B, D), equally many of each; W undoes the averaging of gradients to come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        parts = list(grads[0].contiguous().chunk(distributed.get_world_size()))
        mine = torch.empty_like(parts[0])
        distributed.reduce_scatter(mine, parts)
        return mine.mul_(len(parts))


class _SplitArcFace(torch.autograd.Function):
    """Unit embeddings (B, D) and unit prototypes (C', D) to the mean loss, in one (B, C') buffer.

    The margin is put in without recording it, so the label's logit passes its gradient on as the others' do.
    """

    @staticmethod
    def forward(ctx: Any, unit_e: Tensor, unit_w: Tensor, here: Tensor, scale: float, margin: float) -> Tensor:
        (rows,) = (here >= 0).nonzero(as_tuple=True)
        at = rows, here[rows]
        p = torch.mm(unit_e, unit_w.T).clamp_(-1.0, 1.0)
        p[at] = (p[at].acos() + margin).cos()
        top = p.amax(1, keepdim=True)
        distributed.all_reduce(top, op=distributed.ReduceOp.MAX)
        p.sub_(top).mul_(scale).exp_()
        total = p.sum(1, keepdim=True)
        distributed.all_reduce(total)
        p.div_(total)
        p_y = p.new_zeros(len(p)).index_put_((rows,), p[at])
        distributed.all_reduce(p_y)
        ctx.save_for_backward(unit_e, unit_w, p, *at)
        ctx.scale = scale
        return -p_y.clamp_(min=1e-30).log_().mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit_e, unit_w, g, *at = ctx.saved_tensors
        g[tuple(at)] -= 1.0
        g.mul_(ctx.scale * grads[0] / len(g))
        return torch.mm(g, unit_w), torch.mm(g.T, unit_e), None, None, None


def partial_fc(embeddings: Tensor, weight: Tensor, labels: Tensor, first: int) -> Tensor:
    """Return the mean loss of everyone's rows; ``weight`` has the classes from ``first`` on.

    Source: An et al., "Partial FC" (2021); the protocol of its authors' code at sampling rate 1.
    """
    everyones = [torch.empty_like(labels) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyones, labels)
    here = torch.cat(everyones) - first
    here = here.where((here >= 0) & (here < len(weight)), -1)
    unit_e = F.normalize(_OfAllRanks.apply(embeddings))
    return _SplitArcFace.apply(unit_e, F.normalize(weight), here, 32.0, 0.2)
