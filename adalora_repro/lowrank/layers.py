"""Linear layers with a trained low-rank increment: LoRA (eq. 2) and AdaLoRA's SVD form (eq. 3).

Parameter names are those of loralib and PEFT. The frozen layer is kept as ``.base``; injection replaces it by one of
these modules, so there is no hook and no parametrization (which would pay for the dense weight gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["normal", "kaiming"]


def add_low_rank(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scaling: float = 1.0) -> Tensor:
    """y + scaling * (x downᵀ) upᵀ for y (…, d_out), x (…, d_in), down (r, d_in) and up (d_out, r)."""
    if x.dtype != down.dtype:  # bf16: what autocast would do, and what a model in bf16 needs without it
        down, up = down.to(x.dtype), up.to(x.dtype)
    hidden = F.linear(x, down).reshape(-1, len(down))
    return torch.addmm(y.reshape(-1, len(up)), hidden, up.t(), alpha=scaling).view(y.shape)


class LowRankLinear(nn.Module):
    """What both layers share: the frozen base, the scaling and merging.

    The increment is trained in fp32 (fp64 in a model of that precision), whatever the model's: in bf16 most steps of an
    optimizer would be rounded away.
    """

    lora_A: nn.Parameter  # (r, d_in)
    lora_B: nn.Parameter  # (d_out, r)

    def __init__(self, base: nn.Linear, r: int, alpha: float) -> None:
        super().__init__()
        if r < 1:
            raise ValueError(f"rank r must be at least 1, not {r}")
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        self.base = base.requires_grad_(False)
        self.r = r
        self.scaling = alpha / r

    def _parameter(self, *shape: int, std: float) -> nn.Parameter:
        weight = self.base.weight
        tensor = weight.new_empty(shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        return nn.Parameter(nn.init.normal_(tensor, std=std) if std else nn.init.zeros_(tensor))

    @property
    def weight(self) -> Tensor:
        """The frozen W: some models (T5) read its dtype."""
        return self.base.weight

    def delta_weight(self) -> Tensor:
        """The increment Δ of the dense weight, (d_out, d_in)."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A new plain layer with weight W + Δ (and the base's bias) in the precision of W; this one stays as it is."""
        base, W = self.base, self.base.weight
        merged = nn.Linear(base.in_features, base.out_features, base.bias is not None, W.device, W.dtype)
        merged.weight.copy_(W + self.delta_weight())
        if base.bias is not None:
            merged.bias.copy_(base.bias)
        return merged

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


class LoRALinear(LowRankLinear):
    """h = W x + (alpha / r) B A x, eq. (2) (Hu et al., 2022).

    Args:
        base: the layer to adapt; it is frozen.
        r: rank.
        alpha: numerator of the scaling.
        init_std: the standard deviation of ``init="normal"``.
        init: how A is initialised; B = 0 in both cases, so Δ = 0. ``normal``: A ~ N(0, init_std²), as in the
            authors' DeBERTa. ``kaiming``: A ~ U(-1/√d_in, 1/√d_in), Kaiming's uniform initialisation with a = √5, a
            standard deviation of 1/√(3 d_in), as in loralib, PEFT and the authors' BART (docs/deviations.md, row 16).

    Attributes:
        lora_A: A, (r, d_in).
        lora_B: B, (d_out, r).

    Raises:
        ValueError: r < 1, alpha <= 0 or an unknown ``init``.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, init_std: float = 0.02, init: Init = "normal") -> None:
        super().__init__(base, r, alpha)
        if init not in get_args(Init):
            raise ValueError(f"unknown init '{init}'; valid: {', '.join(get_args(Init))}")
        self.lora_A = self._parameter(r, base.in_features, std=init_std if init == "normal" else 0.0)
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_B = self._parameter(base.out_features, r, std=0.0)

    def delta_weight(self) -> Tensor:
        return self.scaling * self.lora_B @ self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        return add_low_rank(self.base(x), x, self.lora_A, self.lora_B, self.scaling)


class SVDLinear(LowRankLinear):
    """h = W x + (alpha / r) P Λ Q x, eq. (3).

    The scaling uses the initial rank for good: pruning a triplet zeroes its λ and changes nothing else
    (docs/deviations.md, row 13).

    Args:
        base: the layer to adapt; it is frozen.
        r: initial rank, the number of triplets.
        alpha: numerator of the scaling.
        init_std: P, Q ~ N(0, init_std²); Λ = 0, so that Δ = 0 at the start (row 16).

    Attributes:
        lora_A: Q, (r, d_in), right singular vectors as rows.
        lora_E: diag Λ, (r, 1).
        lora_B: P, (d_out, r), left singular vectors as columns.

    Raises:
        ValueError: r < 1 or alpha <= 0.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, init_std: float = 0.02) -> None:
        super().__init__(base, r, alpha)
        self.lora_A = self._parameter(r, base.in_features, std=init_std)
        self.lora_E = self._parameter(r, 1, std=0.0)
        self.lora_B = self._parameter(base.out_features, r, std=init_std)
        self._shared: tuple[Tensor, tuple[int, int]] | None = None

    def delta_weight(self) -> Tensor:
        return self.scaling * self.lora_B @ (self.lora_E * self.lora_A)

    def left_factor(self) -> Tensor:
        """(alpha / r) P Λ, (d_out, r): from ``share_left_factors`` if it is current, else computed here."""
        # a compiler fuses the product below, and would guard on the versions: a recompilation at every step
        if self._shared is not None and not torch.compiler.is_compiling():
            factor, versions = self._shared
            if versions == self._versions() and (factor.requires_grad or not torch.is_grad_enabled()):
                return factor
        return self.lora_B * (self.scaling * self.lora_E).t()

    def _versions(self) -> tuple[int, int]:
        """Autograd's counters of in-place changes: what says that a shared factor is out of date."""
        return self.lora_E._version, self.lora_B._version

    def forward(self, x: Tensor) -> Tensor:
        return add_low_rank(self.base(x), x, self.lora_A, self.left_factor())


Layer = TypeVar("Layer", bound=LowRankLinear)


def stack_by_shape(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Groups layers of equal (d_out, d_in, r, scaling), in order of first appearance: their tensors can be stacked."""
    groups: dict[tuple[int, int, int, float], list[Layer]] = {}
    for layer in layers:
        key = (layer.base.out_features, layer.base.in_features, layer.r, layer.scaling)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


class _LeftFactors(torch.autograd.Function):
    """(P_1 … P_n, Λ_1 … Λ_n) -> s P_k Λ_k in ``dtype`` for layers of one shape, as one node of the graph.

    With G_k the gradient of s P_k Λ_k:  ∂P_k = s G_k Λ_k,  ∂λ_k,i = s Σ_j (P_k)_ji (G_k)_ji.

    Parameters are kept in ``ctx`` as they are, not saved by autograd, because one factor serves all micro-batches of an
    optimizer step and is therefore differentiated several times; they change only after the step.
    """

    @staticmethod
    def forward(ctx: Any, scaling: float, dtype: torch.dtype, n: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.P, ctx.scaling = parameters[:n], scaling  # each (d_out, r)
        ctx.scaled = torch.stack(parameters[n:]).transpose(1, 2) * scaling  # s Λ as a row, (n, 1, r)
        return torch.stack(ctx.P).mul_(ctx.scaled).to(dtype).unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = torch.stack(grads)
        grad_P = grad * ctx.scaled
        # stacked anew: the copy would live as long as the factors, between steps too
        grad_E = torch.stack(ctx.P).mul_(grad).sum(1, keepdim=True).mul_(ctx.scaling).transpose(1, 2)
        return None, None, None, *grad_P.unbind(), *grad_E.unbind()


def share_left_factors(layers: Sequence[SVDLinear]) -> None:
    """Computes s P Λ of all layers at once, for their forward passes until a parameter changes.

    Without it each layer forms its own product; with it a handful of operations serve all layers of a model, and the
    forward and backward of an ``SVDLinear`` dispatch no more operations than those of a ``LoRALinear``. Call it after
    every parameter update, in train mode (a gradient must be wanted). A change through ``.data`` goes unnoticed.

    The products have the precision of the frozen weights. Where these are kept in bf16, under autocast, a product is
    cast once, not in every forward pass.
    """
    for group in stack_by_shape(layers):
        P, E = [layer.lora_B for layer in group], [layer.lora_E for layer in group]
        dtype = group[0].base.weight.dtype
        factors = _LeftFactors.apply(group[0].scaling, dtype, len(group), *P, *E)  # type: ignore[no-untyped-call]
        for layer, factor in zip(group, factors, strict=True):
            layer._shared = factor, layer._versions()


def drop_left_factors(layers: Sequence[SVDLinear]) -> None:
    """Frees what ``share_left_factors`` keeps."""
    for layer in layers:
        layer._shared = None
