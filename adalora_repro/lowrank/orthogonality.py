"""The regularizer that keeps P and Q orthogonal, eq. (4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from adalora_repro.lowrank.layers import SVDLinear, stack_by_shape

Form = Literal["sum_squared", "mean_norm"]


def gram_error(factors: Tensor) -> Tensor:
    """V Vᵀ - I for rows V (…, r, d): zero when the rows are orthonormal; (…, r, r)."""
    gram = factors @ factors.mT
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


Layers = Iterable[SVDLinear] | Mapping[str, SVDLinear]


def _listed(layers: Layers) -> list[SVDLinear]:
    return list(layers.values() if isinstance(layers, Mapping) else layers)


def _gram_errors(layers: list[SVDLinear]) -> list[Tensor]:
    """PᵀP - I and QQᵀ - I of every layer, stacked by shape: tensors (n_k, r, r)."""
    errors = []
    for group in stack_by_shape(layers):
        errors.append(gram_error(torch.stack([layer.lora_B for layer in group]).mT))
        errors.append(gram_error(torch.stack([layer.lora_A for layer in group])))
    return errors


def orthogonality_penalty(layers: Layers, form: Form = "sum_squared") -> Tensor:
    """R over all layers (a sequence, or names to layers), a differentiable scalar, pruned triplets included.

    ``sum_squared`` is eq. (4): Σ_k ||P_kᵀP_k - I||²_F + ||Q_kQ_kᵀ - I||²_F. ``mean_norm`` is the released code's: the
    mean over the 2n matrices of the norm itself, not squared (fidelity F1, F2).

    Raises:
        ValueError: no layers, or an unknown form.
    """
    errors = _gram_errors(_listed(layers))
    if not errors:
        raise ValueError("the orthogonality penalty needs at least one layer")
    if form == "sum_squared":
        return torch.stack([error.square().sum() for error in errors]).sum()
    if form == "mean_norm":
        return torch.cat([torch.linalg.matrix_norm(error) for error in errors]).mean()
    raise ValueError(f"unknown form '{form}'; valid: sum_squared, mean_norm")


@torch.no_grad()
def orthogonality_errors(layers: Layers) -> tuple[list[float], list[float]]:
    """(||P_kᵀP_k - I||²_F, ||Q_kQ_kᵀ - I||²_F) of each layer in the order given: the curves of Figure 4."""
    layers = _listed(layers)
    errors = iter(_gram_errors(layers))
    squared: dict[int, tuple[float, float]] = {}
    for group in stack_by_shape(layers):
        left, right = (next(errors).square().sum((1, 2)).tolist() for _ in range(2))
        squared |= {id(layer): pair for layer, pair in zip(group, zip(left, right, strict=True), strict=True)}
    return [squared[id(layer)][0] for layer in layers], [squared[id(layer)][1] for layer in layers]
