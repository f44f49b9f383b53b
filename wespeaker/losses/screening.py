"""Which classes can be above a threshold, told from bfloat16 products with a certified error bound.

Rounding to bfloat16 moves a number by at most 2^-8 of itself. By Cauchy-Schwarz the product of rounded vectors
then lies within (2^-7 + 2^-16) ‖w‖‖e‖ of the exact one; accumulating D terms in float32 adds at most
D 2^-23 ‖w‖‖e‖, and rounding the result to bfloat16 at most 2^-8 of it. With ‖e‖ = s and after division by ‖w‖

    θ ≤ θ~ + s (2^-7 + 2^-16 + D 2^-23) + κ |θ~|,      κ = 2^-8 / (1 - 2^-8)

so a class with the right side at or below z is certainly inactive. The rest, the survivors, get their logit in
full precision, and the result is the one that no screen would give.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCREENS = ("auto", "none", "bf16")
ROUNDING = 2.0**-8
RESULT = ROUNDING / (1.0 - ROUNDING) * 1.01  # 1.01: the bound itself is computed in float32
# A survivor costs a gather of two rows, as much as some hundred entries of the full product save.
PAYS_BELOW = 0.01
# Survivors are recomputed in blocks of so many, 4 MB a block at D = 512.
BLOCK = 2048


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware, as far as torch says: known of CPUs only."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


class Screen:
    """Low-precision copy of the embeddings, and the product with it."""

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions
        self.low = directions.T.to(torch.bfloat16).contiguous()  # (D, B)
        dim = directions.shape[1]
        norm = torch.linalg.vector_norm(directions.double(), dim=1) * 1.0001
        self.offset = norm * (2.0 * ROUNDING + ROUNDING**2 + dim * 2.0**-23)

    def survivors(
        self, chunk: Tensor, inverse: Tensor, z: Tensor, excluded: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return the flat indices (S,) in (n, B) of the logits above z, and those logits in full precision (S,).

        None where so many survive that the full product is cheaper.

        Args:
            chunk: (n, D) prototypes.
            inverse: (n,) their inverse norms.
            z: (B,) threshold.
            excluded: entries that are not wanted, as indices into (n, B).
        """
        batch = self.low.shape[1]
        coarse = torch.mm(chunk.to(torch.bfloat16), self.low).to(chunk.dtype).mul_(inverse.unsqueeze(1))
        coarse[excluded] = -math.inf
        reach = z - self.offset
        reach = torch.where(reach > 0.0, reach / (1.0 + RESULT), reach / (1.0 - RESULT))
        above = coarse > (reach - 1e-6 * (1.0 + reach.abs())).to(chunk.dtype)
        index = nonzero(above)
        if len(index) > PAYS_BELOW * above.numel():
            return None
        theta = chunk.new_empty(len(index))
        classes, rows = index.div(batch, rounding_mode="floor"), index.remainder(batch)
        for part, c, r in zip(theta.split(BLOCK), classes.split(BLOCK), rows.split(BLOCK), strict=True):
            full = chunk.index_select(0, c).mul_(self.directions.index_select(0, r)).sum(1)
            part.copy_(full * inverse.index_select(0, c))
        kept = theta > z.to(theta.dtype)[rows]
        return index[kept], theta[kept]


def nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices of the true entries, ascending; numpy takes a quarter of torch's time on the CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)
