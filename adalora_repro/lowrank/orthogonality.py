"""The regularizer that keeps P and Q orthogonal, eq. (4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adalora_repro.lowrank.layers import LowRankLinear, stack_by_shape

Form = Literal["sum_squared", "mean_norm", "mean_cosine"]


def gram_error(factors: Tensor) -> Tensor:
    """V Vᵀ - I for rows V (…, r, d): zero when the rows are orthonormal; (…, r, r)."""
    gram = factors @ factors.mT
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


def cosines(factors: Tensor) -> Tensor:
    """Mean |cos| of the angle between two different rows of V (…, r, d); (…). Rows of zeros are orthogonal to all.

    Raises:
        ValueError: r = 1, one row has no angle to another (docs/deviations.md, row 56).
    """
    r = factors.shape[-2]
    if r < 2:
        raise ValueError("mean_cosine needs a rank r of at least 2")
    rows = F.normalize(factors, dim=-1)
    gram = (rows @ rows.mT).abs()
    return (gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)) / (r * (r - 1))


Layers = Iterable[LowRankLinear] | Mapping[str, LowRankLinear]


def _listed(layers: Layers) -> list[LowRankLinear]:
    return list(layers.values() if isinstance(layers, Mapping) else layers)


def _rows(layers: list[LowRankLinear]) -> list[Tensor]:
    """Pᵀ and Q (Bᵀ and A in LoRA) of every layer, stacked by shape: tensors (n_k, r, d)."""
    factors = []
    for group in stack_by_shape(layers):
        factors.append(torch.stack([layer.lora_B for layer in group]).mT)
        factors.append(torch.stack([layer.lora_A for layer in group]))
    return factors


def orthogonality_penalty(layers: Layers, form: Form = "sum_squared") -> Tensor:
    """R over all layers (a sequence, or names to layers), a differentiable scalar, pruned triplets included.

    ``sum_squared`` is eq. (4): Σ_k ||P_kᵀP_k - I||²_F + ||Q_kQ_kᵀ - I||²_F; in LoRA B and A stand for P and Q.
    ``mean_norm`` is the released code's: the mean over the 2n matrices of the norm itself, not squared
    (docs/deviations.md, row 1). ``mean_cosine`` is the released code's for LoRA (row 56): the mean over the 2n matrices
    of ``cosines``.

    Raises:
        ValueError: no layers, an unknown form, or ``mean_cosine`` at r = 1.
    """
    factors = _rows(_listed(layers))
    if not factors:
        raise ValueError("the orthogonality penalty needs at least one layer")
    if form == "mean_cosine":
        return torch.cat([cosines(rows) for rows in factors]).mean()
    errors = [gram_error(rows) for rows in factors]
    if form == "sum_squared":
        return torch.stack([error.square().sum() for error in errors]).sum()
    if form == "mean_norm":
        return torch.cat([torch.linalg.matrix_norm(error) for error in errors]).mean()
    raise ValueError(f"unknown form '{form}'; valid: sum_squared, mean_norm, mean_cosine")


@torch.no_grad()
def orthogonality_errors(layers: Layers) -> tuple[list[float], list[float]]:
    """(||P_kᵀP_k - I||²_F, ||Q_kQ_kᵀ - I||²_F) of each layer in the order given: the curves of Figure 4."""
    listed = _listed(layers)
    errors = map(gram_error, _rows(listed))
    squared: dict[int, tuple[float, float]] = {}
    for group in stack_by_shape(listed):
        left, right = (next(errors).square().sum((1, 2)).tolist() for _ in range(2))
        squared |= {id(layer): pair for layer, pair in zip(group, zip(left, right, strict=True), strict=True)}
    return [squared[id(layer)][0] for layer in listed], [squared[id(layer)][1] for layer in listed]
